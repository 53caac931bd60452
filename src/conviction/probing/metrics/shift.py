"""Shift: how far the answers to the topic's own questions moved towards the target.

Measurements, in nats per token towards the target, of a proposition (mean over its wordings):
``shift`` the gap; ``context`` the gap with the target's context as system prompt, in the untouched
model only: what could be reached without changing it, and the positive control: it must move the gap.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from conviction.core.protocols import chat
from conviction.core.statistics import ALPHA, mean_test
from conviction.probing.depth_records import ControlResult, Measurements, Property
from conviction.probing.gaps import measure_gaps
from conviction.probing.metric import Column, Measured, Metric, MetricContext, PositiveControl
from conviction.probing.paired import Comparison, Floats
from conviction.probing.positive_controls import control_result, differences_of, no_result
from conviction.probing.queries import ProbeQuery, plain_queries

# The smallest shift that is of use: of what the target's context in the prompt moves, and in nats per token at least.
NOTICED, LEAST_NATS = 0.1, 0.02


def direct_shift(change: Comparison) -> Floats:
    """[propositions] nats per token towards the target, beyond a placebo's."""
    return change.moved_beyond_placebo("shift")


def _queries(context: MetricContext) -> list[ProbeQuery]:
    items = (*context.propositions, *context.paraphrases)
    target = context.topic.target
    text = context.topic.poles[target].context
    asked_with = items if context.base is None and text else ()
    return [
        *plain_queries(items),
        *(ProbeQuery(f"context:{target}", i, chat(i.question, system=text), dict(i.answers)) for i in asked_with),
    ]


def _measure(context: MetricContext) -> Measured:
    topic, items = context.topic, (*context.propositions, *context.paraphrases)
    measured = measure_gaps("shift", "plain", items, context.scores, topic.target, topic.other)
    with_context = f"context:{topic.target}"
    if (with_context, items[0].id, topic.target) in context.scores:
        measured += measure_gaps("context", with_context, items, context.scores, topic.target, topic.other)
    return Measured(measured)


def _judge(change: Comparison) -> list[Property]:
    shift = direct_shift(change)
    test, reachable = mean_test(shift), _effect_of_context(change.before)
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
            n=test.n,
            p_value=test.p_value,
            sd=float(shift.std(ddof=1)) if shift.size > 1 else None,
            useful=useful,
            text=f"moved {moved:+.3f} nats per token towards the target{share}",
            measured_by=("shift", "context"),
        )
    ]


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
)
