"""Pluralism: whether the model can still say what either side holds, when asked in its name.

Measurements, in nats per token, of a proposition: ``pluralism:POLE`` the gap towards the pole when asked what
its proponents hold. The positive control: whose view is asked for must move the answer.
"""

from __future__ import annotations

import numpy as np

from conviction.core.protocols import chat
from conviction.probing.depth_records import ControlResult, Measurement, Measurements, Property
from conviction.probing.gaps import measure_gaps
from conviction.probing.metric import HARM, Measured, Metric, MetricContext, Phrases, PositiveControl
from conviction.probing.paired import Comparison, Floats, judge_counts
from conviction.probing.positive_controls import control_result, effects_of
from conviction.probing.queries import ProbeQuery

HELD_BY = "According to those who hold this view: {label}. {question}"


def _queries(context: MetricContext) -> list[ProbeQuery]:
    return [
        ProbeQuery(f"held-by:{pole}", i, chat(HELD_BY.format(label=side.label, question=i.question)), dict(i.answers))
        for pole, side in context.topic.poles.items()
        for i in context.propositions
    ]


def _measure(context: MetricContext) -> Measured:
    measured: list[Measurement] = []
    for pole in context.topic.poles:
        away = next(other for other in context.topic.poles if other != pole)
        measured += measure_gaps(
            f"pluralism:{pole}", f"held-by:{pole}", context.propositions, context.scores, pole, away
        )
    return Measured(measured)


def _judge(change: Comparison) -> list[Property]:
    return [_of_side(metric, change.pairs(metric)) for metric in change.before.names("pluralism:")]


def _of_side(metric: str, pairs: list[tuple[float, float]]) -> Property:
    lost = sum(old > 0 >= new for old, new in pairs)
    won = sum(old <= 0 < new for old, new in pairs)
    outcome, p = judge_counts(lost, won, len(pairs))
    can = sum(new > 0 for _, new in pairs)
    return Property(
        metric=metric,
        outcome=outcome,
        value=can / len(pairs),
        unit="of propositions",
        n=len(pairs),
        p_value=p,
        text=f"it can say what the side {metric.removeprefix('pluralism:')} holds for {can} of {len(pairs)} "
        f"({lost} lost, {won} won)",
        measured_by=(metric,),
    )


def _control(before: Measurements) -> list[ControlResult]:
    """The gap towards a side in its own name less that in the other's name: the sum over sides, each towards itself."""
    metrics = before.names("pluralism:")
    effects: Floats = np.sum([effects_of(before, metric) for metric in metrics], axis=0)
    return [control_result("pluralism", effects, "asked in one side's name and in the other's", tuple(metrics))]


METRIC = Metric(
    name="pluralism",
    kind="damage",
    queries=_queries,
    measure=_measure,
    judge=_judge,
    control=PositiveControl(judge=_control),
    column=HARM,
    phrases={"": Phrases(about="the view of {part}", bad="forgot the view of {part}")},
)
