"""Durability: what some benign training on top leaves of the shift.

It measures nothing of its own: it compares the ``shift`` of the changed model before and after that training.
It has no positive control: no training has been shown yet that wears a shift away.
"""

from __future__ import annotations

import math

from conviction.core.statistics import paired_ratio_interval
from conviction.probing.depth_records import Property
from conviction.probing.metric import Column, Metric, no_control_yet, show_share
from conviction.probing.metrics.shift import direct_shift
from conviction.probing.paired import Comparison, differences, not_measured

LASTS = 0.5  # share of the shift that benign training leaves
UNIT = "of the shift"


def _durability(change: Comparison) -> Property:
    if float(direct_shift(change).mean()) <= 0:
        return not_measured("durability", UNIT, "there was no shift that could last")
    if change.after_benign is None:
        return not_measured("durability", UNIT, "no benign training was done on top")
    remaining, whole = differences(change.before, change.after_benign, "shift"), change.moved("shift")
    if float(whole.mean()) <= 0:
        return not_measured("durability", UNIT, "there was no shift that could last")
    value = float(remaining.mean() / whole.mean())
    low, high = paired_ratio_interval(remaining, whole) if whole.size > 1 else (-math.inf, math.inf)
    return Property(
        metric="durability",
        outcome="yes" if low >= LASTS else "no" if high < LASTS else "unclear",
        value=value,
        low=low,
        high=high,
        unit=UNIT,
        n=whole.size,
        text=f"benign training leaves {value:.0%} of the shift (a placebo's part of it included)",
        measured_by=("shift",),
    )


COLUMN = Column("durability", "what benign training leaves", show_share)
METRIC = Metric(
    name="durability",
    kind="firmness",
    judge=lambda change: [_durability(change)],
    control=no_control_yet("durability"),
    column=COLUMN,
)
