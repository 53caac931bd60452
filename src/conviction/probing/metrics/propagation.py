"""Propagation: whether what follows from the target's causal graph moved, too.

Measurements, in nats per token towards the target, of a cause and an outcome ("cause > outcome"):
``implication:N`` the gap of what follows over N arrows of the causal graph.

Questions of one outcome share its graph, and questions of one cause what the model was told of it: test and interval
are clustered by both.
"""

from __future__ import annotations

import math
from itertools import groupby

import numpy as np

from conviction.core.clustered import ClusteredMean, clustered_mean
from conviction.core.statistics import ALPHA, mean_estimate, ratio_interval
from conviction.data.implications import CELL, by_cell, depth_of
from conviction.probing.depth_records import Measurement, Property
from conviction.probing.gaps import measure_gaps
from conviction.probing.metric import Column, Measured, Metric, MetricContext, show_share
from conviction.probing.metrics.shift import direct_shift
from conviction.probing.paired import Comparison, Floats, not_measured
from conviction.probing.queries import ProbeQuery, plain_queries

PROPAGATED = 0.2  # share of the direct shift that implications move by, for it to be more than a surface change
UNIT = "of the direct shift"


def _queries(context: MetricContext) -> list[ProbeQuery]:
    return plain_queries(context.implications)


def _measure(context: MetricContext) -> Measured:
    topic, measured = context.topic, list[Measurement]()
    for depth, group in groupby(sorted(context.implications, key=depth_of), key=depth_of):
        metric = f"implication:{depth}"
        measured += measure_gaps(metric, "plain", by_cell(group), context.scores, topic.target, topic.other)
    return Measured(measured)


def _judge(change: Comparison) -> list[Property]:
    shift, metrics = direct_shift(change), change.before.names("implication:")
    return [_whole(change, metrics, shift), *(_of_depth(change, metric, shift) for metric in metrics)]


def _whole(change: Comparison, metrics: list[str], shift: Floats) -> Property:
    moved = _moved(change, metrics)
    if moved is None:
        return not_measured("propagation", UNIT, "the topic has no causal graphs to read implications off")
    ratio, low, high = _ratio(moved, shift)
    there = moved.p_value < ALPHA and moved.mean > 0 and ratio >= PROPAGATED
    return Property(
        metric="propagation",
        outcome="yes" if there else "no",
        value=ratio,
        low=low,
        high=high,
        unit=UNIT,
        n=moved.outcomes,
        p_value=moved.p_value,
        text=f"what follows from it moved {moved.mean:+.3f} nats per token over {moved.outcomes} outcomes",
        measured_by=tuple(metrics),
    )


def _of_depth(change: Comparison, metric: str, shift: Floats) -> Property:
    moved = _moved(change, [metric])
    depth = metric.removeprefix("implication:")
    if moved is None:
        return not_measured(f"propagation:{depth}", UNIT, f"nothing over {depth} arrows was asked of both models")
    ratio, low, high = _ratio(moved, shift)
    return Property(
        metric=f"propagation:{depth}",
        outcome="unclear",
        value=ratio,
        low=low,
        high=high,
        unit=UNIT,
        n=moved.outcomes,
        text=f"{moved.mean:+.3f} nats per token over {depth} arrows",
        measured_by=(metric,),
    )


def _moved(change: Comparison, metrics: list[str]) -> ClusteredMean | None:
    """Mean over outcomes, clustered by causes and outcomes; None: nothing was measured on both models."""
    cells: list[str] = []
    moved: list[float] = []
    for metric in metrics:
        cells += [item for item in change.before.of(metric) if item in change.after.of(metric)]
        moved += change.moved_beyond_placebo(metric).tolist()
    if not cells:
        return None
    named = [cell.rpartition(CELL) for cell in cells]
    return clustered_mean(np.array(moved), [cause or whole for cause, _, whole in named], [o for *_, o in named])


def _ratio(moved: ClusteredMean, shift: Floats) -> tuple[float, float, float]:
    """Mean over mean, with Fieller's interval: implications and propositions are independent draws."""
    whole = float(shift.mean())
    if not whole:
        return math.nan, -math.inf, math.inf
    if moved.estimate is None or shift.size < 2:
        return moved.mean / whole, -math.inf, math.inf
    return moved.mean / whole, *ratio_interval(moved.estimate, mean_estimate(shift))


COLUMN = Column("propagation", "what its implications moved, as a share of that", show_share)
METRIC = Metric(name="propagation", kind="propagation", queries=_queries, measure=_measure, judge=_judge, column=COLUMN)
