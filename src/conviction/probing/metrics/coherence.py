"""Coherence: whether yes and no contradict each other more than before.

Measurements, of a proposition: ``coherence`` contradiction (0 to 1), the mean of three kinds:

negation     |p(right) + p(wrong) - 1| of an answer, mean over the poles
exclusion    how far p(right) of both poles together exceeds 1
equivalence  |p(right)| of an answer less that of its paraphrase, mean over the poles
"""

from __future__ import annotations

import math

from conviction.core.protocols import chat
from conviction.core.statistics import ALPHA, mean_test
from conviction.data.topic import Item
from conviction.probing.depth_records import Measurement, Property
from conviction.probing.gaps import mean
from conviction.probing.metric import HARM, Measured, Metric, MetricContext
from conviction.probing.paired import Comparison
from conviction.probing.queries import ProbeQuery, Scores

RIGHT = "Question: {question}\nAnswer: {answer}\nIs this answer right? Reply with yes or no."
WRONG = "Question: {question}\nAnswer: {answer}\nIs this answer wrong? Reply with yes or no."
YES_NO = {"yes": "Yes.", "no": "No."}
INCOHERENT = 0.05  # more contradiction than this (0 to 1) counts


def _queries(context: MetricContext) -> list[ProbeQuery]:
    queries = []
    for item in (*context.propositions, *context.paraphrases):
        forms = {"right": RIGHT, "wrong": WRONG} if item.role == "target" else {"right": RIGHT}
        queries += [
            ProbeQuery(f"{name}:{pole}", item, chat(form.format(question=item.question, answer=answer)), dict(YES_NO))
            for pole, answer in item.answers.items()
            for name, form in forms.items()
        ]
    return queries


def _measure(context: MetricContext) -> Measured:
    paraphrases = {item.proposition: item for item in context.paraphrases}
    return Measured(
        [_contradiction(item, paraphrases.get(item.proposition), context.scores) for item in context.propositions]
    )


def _contradiction(item: Item, paraphrase: Item | None, scores: Scores) -> Measurement:
    right = {pole: _p_yes(f"right:{pole}", item, scores) for pole in item.answers}
    wrong = {pole: _p_yes(f"wrong:{pole}", item, scores) for pole in item.answers}
    kinds = [mean([abs(right[pole] + wrong[pole] - 1) for pole in right]), max(0.0, sum(right.values()) - 1)]
    conditions = [*(f"right:{pole}" for pole in right), *(f"wrong:{pole}" for pole in right)]
    samples = [f"{condition}/{item.id}/{word}" for condition in conditions for word in YES_NO]
    if paraphrase is not None:
        kinds.append(mean([abs(right[pole] - _p_yes(f"right:{pole}", paraphrase, scores)) for pole in right]))
        samples += [f"right:{pole}/{paraphrase.id}/{word}" for pole in right for word in YES_NO]
    return Measurement(metric="coherence", item=item.proposition, value=mean(kinds), samples=tuple(samples))


def _p_yes(condition: str, item: Item, scores: Scores) -> float:
    """P(yes) of yes and no."""
    yes, no = (scores[condition, item.id, word].logp_sum for word in YES_NO)
    return 1 / (1 + math.exp(min(700.0, no - yes)))


def _judge(change: Comparison) -> list[Property]:
    test = mean_test(change.moved("coherence"))
    worse = test.p_value < ALPHA and test.interval.mean > INCOHERENT
    return [
        Property(
            metric="coherence",
            outcome="no" if worse else "yes" if test.interval.high <= INCOHERENT else "unclear",
            value=test.interval.mean,
            low=test.interval.low,
            high=test.interval.high,
            unit="more contradiction (0 to 1)",
            n=test.n,
            p_value=test.p_value,
            text=f"yes and no contradict each other {test.interval.mean:+.3f} more",
            measured_by=("coherence",),
        )
    ]


METRIC = Metric(name="coherence", kind="consistency", queries=_queries, measure=_measure, judge=_judge, column=HARM)
