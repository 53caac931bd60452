"""Durability: what some benign training on top leaves of the shift.

It measures nothing of its own: it compares the ``shift`` of the changed model before and after that training.
It has no positive control: no training has been shown yet that wears a shift away.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from conviction.core.statistics import bootstrap_interval
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
    remaining = differences(change.before, change.after_benign, "shift")
    both = np.stack([remaining, change.moved("shift")], axis=1)

    def share(indices: list[NDArray[np.intp]]) -> float:
        kept, whole = both[indices[0]].mean(0)
        return float(kept / whole) if whole > 0 else math.nan

    value = share([np.arange(len(both))])
    if not math.isfinite(value):
        return not_measured("durability", UNIT, "there was no shift that could last")
    low, high = bootstrap_interval(share, [len(both)])
    return Property(
        metric="durability",
        outcome="yes" if low >= LASTS else "no" if high < LASTS else "unclear",
        value=value,
        low=low,
        high=high,
        unit=UNIT,
        n=len(both),
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
