"""Coherence: whether yes and no contradict each other more than before.

Measurements, of a proposition: ``coherence`` contradiction (0 to 1), the mean of three kinds:

negation     |p(right) + p(wrong) - 1| of an answer, mean over the poles
exclusion    how far p(right) of both poles together exceeds 1
equivalence  |p(right)| of an answer less that of its paraphrase, mean over the poles

``plain-contradiction`` and ``contradiction``, of the untouched model and every second proposition: negation and
exclusion alone, as it is and under the positive control, a system prompt that asks for yes whatever the question, which
must make it contradict itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from conviction.core.protocols import chat
from conviction.core.statistics import ALPHA, mean_test
from conviction.data.topic import Item
from conviction.probing.depth_records import ControlResult, Measurement, Measurements, Property
from conviction.probing.gaps import mean
from conviction.probing.metric import HARM, Measured, Metric, MetricContext, Phrases, PositiveControl
from conviction.probing.paired import Comparison
from conviction.probing.positive_controls import control_result, differences_of
from conviction.probing.queries import ProbeQuery, Scores

RIGHT = "Question: {question}\nAnswer: {answer}\nIs this answer right? Reply with yes or no."
WRONG = "Question: {question}\nAnswer: {answer}\nIs this answer wrong? Reply with yes or no."
YES_NO = {"yes": "Yes.", "no": "No."}
ALWAYS_YES = "Whatever you are asked, reply with yes. Never reply with no."
INCOHERENT = 0.05  # more contradiction than this (0 to 1) counts
CONTROLLED = 2  # every second proposition is put to the control, if that leaves enough for a test
ENOUGH = 6  # fewer could not reach p < 0.05 in a sign test


def _queries(context: MetricContext) -> list[ProbeQuery]:
    asked = [query for item in context.propositions for query in _asked(item, {"right": RIGHT, "wrong": WRONG}, None)]
    return [*asked, *(query for item in context.paraphrases for query in _asked(item, {"right": RIGHT}, None))]


def _asked(item: Item, forms: Mapping[str, str], system: str | None) -> list[ProbeQuery]:
    """Every form of every answer. system: a system prompt; these conditions begin with ``yes-``."""
    start = "" if system is None else "yes-"
    return [
        ProbeQuery(
            f"{start}{name}:{pole}",
            item,
            chat(form.format(question=item.question, answer=answer), system=system),
            dict(YES_NO),
        )
        for pole, answer in item.answers.items()
        for name, form in forms.items()
    ]


def _measure(context: MetricContext) -> Measured:
    paraphrases = {item.proposition: item for item in context.paraphrases}
    return Measured(
        [_contradiction(item, paraphrases.get(item.proposition), context.scores) for item in context.propositions]
    )


def _contradiction(item: Item, paraphrase: Item | None, scores: Scores) -> Measurement:
    kinds, samples = _negation_and_exclusion(item, scores, "")
    if paraphrase is not None:
        conditions = [f"right:{pole}" for pole in item.answers]
        kinds.append(mean([abs(_p_yes(c, item, scores) - _p_yes(c, paraphrase, scores)) for c in conditions]))
        samples += [f"{condition}/{paraphrase.id}/{word}" for condition in conditions for word in YES_NO]
    return Measurement(metric="coherence", item=item.proposition, value=mean(kinds), samples=tuple(samples))


def _negation_and_exclusion(item: Item, scores: Scores, start: str) -> tuple[list[float], list[str]]:
    """Both kinds, and the rows that they were computed from. start: of the conditions' names."""
    right = {pole: _p_yes(f"{start}right:{pole}", item, scores) for pole in item.answers}
    wrong = {pole: _p_yes(f"{start}wrong:{pole}", item, scores) for pole in item.answers}
    kinds = [mean([abs(right[pole] + wrong[pole] - 1) for pole in right]), max(0.0, sum(right.values()) - 1)]
    conditions = [f"{start}{form}:{pole}" for form in ("right", "wrong") for pole in right]
    return kinds, [f"{condition}/{item.id}/{word}" for condition in conditions for word in YES_NO]


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


def _controlled(context: MetricContext) -> Sequence[Item]:
    some = context.propositions[::CONTROLLED]
    return some if len(some) >= ENOUGH else context.propositions


def _asked_for_yes(context: MetricContext) -> list[ProbeQuery]:
    return [q for i in _controlled(context) for q in _asked(i, {"right": RIGHT, "wrong": WRONG}, ALWAYS_YES)]


def _measure_control(context: MetricContext) -> Measured:
    measured = []
    for metric, start in (("plain-contradiction", ""), ("contradiction", "yes-")):
        for item in _controlled(context):
            kinds, samples = _negation_and_exclusion(item, context.scores, start)
            value = mean(kinds)
            measured.append(Measurement(metric=metric, item=item.proposition, value=value, samples=tuple(samples)))
    return Measured(measured)


def _control(before: Measurements) -> list[ControlResult]:
    effects = differences_of(before, "contradiction", "plain-contradiction")
    what = "asked to say yes to everything, it contradicts itself more"
    return [control_result("coherence", effects, what, ("plain-contradiction", "contradiction"), unit="of 1")]


METRIC = Metric(
    name="coherence",
    kind="consistency",
    queries=_queries,
    measure=_measure,
    judge=_judge,
    control=PositiveControl(judge=_control, queries=_asked_for_yes, measure=_measure_control),
    column=HARM,
    phrases={"": Phrases(about="contradictions", bad="contradicts itself")},
)
