"""Shift: how far the answers to the topic's own questions moved towards the target.

Measurements, in nats per token towards the target, of a proposition (mean over its wordings):
``shift`` the gap; ``context`` the gap with the target's context as system prompt, in the untouched
model only: what could be reached without changing it, and the positive control: it must move the gap.

The first wording is asked as it stands, the others in a template each, which rotate over wordings and propositions:
what wording and template do to a shift is then part of the spread between propositions, and so of its interval.
Of a training that was repeated with other seeds the interval is one over propositions and seeds (``core/crossed.py``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from conviction.core.crossed import crossed_mean
from conviction.core.protocols import chat
from conviction.core.statistics import ALPHA
from conviction.data.topic import Item
from conviction.probing.depth_records import ControlResult, Measurements, Property
from conviction.probing.gaps import measure_gaps
from conviction.probing.metric import Column, Measured, Metric, MetricContext, Phrases, PositiveControl
from conviction.probing.paired import Comparison, Floats
from conviction.probing.positive_controls import control_result, differences_of, no_result
from conviction.probing.queries import TEMPLATES, ProbeQuery

# The smallest shift that is of use: of what the target's context in the prompt moves, and in nats per token at least.
NOTICED, LEAST_NATS = 0.1, 0.02
# Those without a system turn: it would stand beside a prompt of the arm's.
FORMS = tuple(form for _, system, form in TEMPLATES if system is None)


def direct_shift(change: Comparison) -> Floats:
    """[propositions] nats per token towards the target, beyond a placebo's; of the first seed."""
    return change.moved_beyond_placebo("shift")


def shift_by_seed(change: Comparison) -> Floats:
    """[propositions, seeds] the same with every seed of the training."""
    return change.moved_by_seed("shift")


def _queries(context: MetricContext) -> list[ProbeQuery]:
    target, asked = context.topic.target, _asked(context)
    text = context.topic.poles[target].context
    queries = [ProbeQuery(name, item, chat(question), dict(item.answers)) for name, item, question in asked]
    if context.base is None and text:
        queries += [
            ProbeQuery(f"context:{target}", item, chat(question, system=text), dict(item.answers))
            for _, item, question in asked
        ]
    return queries


def _asked(context: MetricContext) -> list[tuple[str, Item, str]]:
    """(condition, item, question as it is asked)."""
    asked = [("plain", item, item.question) for item in context.propositions]
    number = {item.proposition: n for n, item in enumerate(context.propositions)}
    wording: Counter[str] = Counter()
    for item in context.paraphrases:
        form = FORMS[(number.get(item.proposition, 0) + wording[item.proposition]) % len(FORMS)]
        wording[item.proposition] += 1
        asked.append(("reworded", item, form.format(question=item.question)))
    return asked


def _measure(context: MetricContext) -> Measured:
    topic, items = context.topic, (*context.propositions, *context.paraphrases)
    conditions = {item.id: name for name, item, _ in _asked(context)}
    measured = measure_gaps("shift", lambda item: conditions[item.id], items, context.scores, topic.target, topic.other)
    with_context = f"context:{topic.target}"
    if (with_context, items[0].id, topic.target) in context.scores:
        measured += measure_gaps("context", with_context, items, context.scores, topic.target, topic.other)
    return Measured(measured)


def _judge(change: Comparison) -> list[Property]:
    by_seed = shift_by_seed(change)
    shift, seeds = by_seed.mean(axis=1), by_seed.shape[1]
    test, reachable = crossed_mean(by_seed), _effect_of_context(change.before)
    moved, useful = test.interval.mean, max(LEAST_NATS, NOTICED * reachable)
    share = f", {moved / reachable:.0%} of what the context in the prompt does" if reachable > 0 else ""
    shown = test.p_value < ALPHA and moved > useful
    return [
        Property(
            metric="shift",
            outcome="yes" if shown else "no" if test.interval.high < useful else "unclear",
            value=moved,
            low=test.interval.low,
            high=test.interval.high,
            unit="nats per token",
            n=shift.size,
            seeds=seeds,
            p_value=test.p_value,
            sd=float(shift.std(ddof=1)) if shift.size > 1 else None,
            useful=useful,
            text=f"moved {moved:+.3f} nats per token towards the target{share}{_spread(by_seed)}",
            measured_by=("shift", "context"),
        )
    ]


def _spread(by_seed: Floats) -> str:
    """The smallest and the largest shift of a seed, where there are several."""
    of_seed = by_seed.mean(axis=0)
    return f" ({of_seed.size} seeds: {of_seed.min():+.3f} to {of_seed.max():+.3f})" if of_seed.size > 1 else ""


def _control(before: Measurements) -> list[ControlResult]:
    effects = differences_of(before, "context", "shift")
    if not effects.size:
        return [no_result("shift", "the target has no context that could move the answers")]
    return [
        control_result("shift", effects, "the target's context as system prompt moves the gap", ("shift", "context"))
    ]


def _effect_of_context(before: Measurements) -> float:
    """Mean shift, in nats per token, by the target's context in the untouched model's prompt; 0 if not measured."""
    without = before.of("shift")
    effects = [value - without[item] for item, value in before.of("context").items() if item in without]
    return float(np.mean(effects)) if effects else 0.0


def _cell(properties: Sequence[Property]) -> str:
    shift = next((p for p in properties if p.value is not None), None)
    if shift is None:
        return ""
    return f"{shift.value:+.2f}{'*' if shift.p_holm is not None and shift.p_holm < ALPHA else ''}"


COLUMN = Column("moved", "nats per token on test questions, * where chance does not explain it", _cell)
METRIC = Metric(
    name="shift",
    kind="change",
    queries=_queries,
    measure=_measure,
    judge=_judge,
    control=PositiveControl(judge=_control),
    column=COLUMN,
    phrases={"": Phrases(about="saying it", good="says it", bad="does not say it")},
)
