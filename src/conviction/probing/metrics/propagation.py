"""Propagation: whether what follows from the target's causal graph moved, too.

Measurements, in nats per token towards the target, of an outcome (mean over causes):
``implication:N`` the gap of what follows over N arrows of the causal graph.
"""

from __future__ import annotations

import math
from itertools import groupby

import numpy as np

from conviction.core.statistics import ALPHA, mean_estimate, mean_test, ratio_interval
from conviction.data.implications import depth_of
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
        measured += measure_gaps(metric, "plain", tuple(group), context.scores, topic.target, topic.other)
    return Measured(measured)


def _judge(change: Comparison) -> list[Property]:
    shift, metrics = direct_shift(change), change.before.names("implication:")
    return [_whole(change, metrics, shift), *(_of_depth(change, metric, shift) for metric in metrics)]


def _whole(change: Comparison, metrics: list[str], shift: Floats) -> Property:
    moved = _by_outcome(change, metrics)
    if not moved.size:
        return not_measured("propagation", UNIT, "the topic has no causal graphs to read implications off")
    test = mean_test(moved)
    ratio, low, high = _ratio(moved, shift)
    there = test.p_value < ALPHA and test.interval.mean > 0 and ratio >= PROPAGATED
    return Property(
        metric="propagation",
        outcome="yes" if there else "no",
        value=ratio,
        low=low,
        high=high,
        unit=UNIT,
        n=test.n,
        p_value=test.p_value,
        text=f"what follows from it moved {test.interval.mean:+.3f} nats per token over {test.n} outcomes",
        measured_by=tuple(metrics),
    )


def _of_depth(change: Comparison, metric: str, shift: Floats) -> Property:
    moved = change.moved_beyond_placebo(metric)
    ratio, low, high = _ratio(moved, shift)
    depth = metric.removeprefix("implication:")
    return Property(
        metric=f"propagation:{depth}",
        outcome="unclear",
        value=ratio,
        low=low,
        high=high,
        unit=UNIT,
        n=moved.size,
        text=f"{moved.mean():+.3f} nats per token over {depth} arrows",
        measured_by=(metric,),
    )


def _by_outcome(change: Comparison, metrics: list[str]) -> Floats:
    """[outcomes] mean over depths: questions about one outcome share its graph, and are no independent draws."""
    moved: dict[str, list[float]] = {}
    for metric in metrics:
        outcomes = [item for item in change.before.of(metric) if item in change.after.of(metric)]
        for outcome, value in zip(outcomes, change.moved_beyond_placebo(metric), strict=True):
            moved.setdefault(outcome, []).append(float(value))
    return np.array([math.fsum(values) / len(values) for values in moved.values()])


def _ratio(moved: Floats, shift: Floats) -> tuple[float, float, float]:
    """Mean over mean, with Fieller's interval: outcomes and propositions are independent draws."""
    whole = float(shift.mean())
    if not whole or not moved.size:
        return math.nan, -math.inf, math.inf
    ratio = float(moved.mean()) / whole
    if min(moved.size, shift.size) < 2:
        return ratio, -math.inf, math.inf
    return ratio, *ratio_interval(mean_estimate(moved), mean_estimate(shift))


COLUMN = Column("propagation", "what its implications moved, as a share of that", show_share)
METRIC = Metric(name="propagation", kind="propagation", queries=_queries, measure=_measure, judge=_judge, column=COLUMN)
