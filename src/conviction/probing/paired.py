"""Two models' measurements, item by item."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from conviction.core.statistics import ALPHA, mean_estimate, ratio_interval, sign_test, win_share
from conviction.probing.depth_records import Measurements, Property, PropertyOutcome

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The measurements that a change is judged by.

    before        of the untouched model, ``after`` of the changed one
    placebo       after the same training on texts of another subject; None: there is none
    after_benign  after some benign training on top of the change; None: there was none
    reversal      after doses of the other side's documents on top of the change; None: none were given
    repeats       after the same training with other seeds, and after the placebo of each; None: there is none
    """

    before: Measurements
    after: Measurements
    placebo: Measurements | None = None
    after_benign: Measurements | None = None
    reversal: Measurements | None = None
    repeats: tuple[tuple[Measurements, Measurements | None], ...] = ()

    def pairs(self, *metrics: str) -> list[tuple[float, float]]:
        """(before, after) of every item that both measured."""
        return pairs(self.before, self.after, *metrics)

    def moved(self, *metrics: str) -> Floats:
        """[items] after less before."""
        return differences(self.before, self.after, *metrics)

    def moved_beyond_placebo(self, *metrics: str) -> Floats:
        """[items] after less before, less what a placebo moved."""
        moved = self.moved(*metrics)
        return moved if self.placebo is None else moved - differences(self.before, self.placebo, *metrics)

    def moved_by_seed(self, *metrics: str) -> Floats:
        """[items, seeds] after less before, less what the placebo of the same seed moved.

        Where a seed has no placebo, and others have, their mean stands for it.
        """
        seeds = ((self.after, self.placebo), *self.repeats)
        moved = np.stack([differences(self.before, after, *metrics) for after, _ in seeds], axis=1)
        placebos = [None if one is None else differences(self.before, one, *metrics) for _, one in seeds]
        if not (there := [one for one in placebos if one is not None]):
            return moved
        mean: Floats = np.mean(there, axis=0)
        beyond: Floats = moved - np.stack([mean if one is None else one for one in placebos], axis=1)
        return beyond


def pairs(before: Measurements, after: Measurements, *metrics: str) -> list[tuple[float, float]]:
    """(before, after) of every item that both measured."""
    return [
        (old, new)
        for metric in metrics
        for item, old in before.of(metric).items()
        if (new := after.of(metric).get(item)) is not None
    ]


def differences(before: Measurements, after: Measurements, *metrics: str) -> Floats:
    """[items] after less before."""
    return np.array([new - old for old, new in pairs(before, after, *metrics)], dtype=np.float64)


def not_measured(metric: str, unit: str, why: str) -> Property:
    """A property that was not measured, which is never a property that is there."""
    return Property(metric=metric, outcome="not measured", value=None, unit=unit, n=0, text=why, measured_by=())


LOST = 0.2  # share of items: a net loss that is shown to be smaller is none


def judge_counts(lost: int, won: int, n: int) -> tuple[PropertyOutcome, float]:
    """Whether items that were lost are more than chance, of n, and the p-value of the sign test.

    'no': more were lost than won beyond chance; 'yes': not more, or Wilson's interval of the rest excludes ``LOST``.
    """
    p = sign_test(lost, won)
    if p < ALPHA and lost > won:
        return "no", p
    return "yes" if lost <= won or win_share(lost - won, n).high < LOST else "unclear", p


def share_of(moved: Floats, shift: Floats) -> tuple[float, float, float]:
    """Mean over mean, with Fieller's 95 % interval: the items of either are independent draws.

    Not a number, and no bounds, where there is nothing to divide.
    """
    whole = float(shift.mean()) if shift.size else 0.0
    if not whole or not moved.size:
        return math.nan, -math.inf, math.inf
    ratio = float(moved.mean()) / whole
    if min(moved.size, shift.size) < 2:
        return ratio, -math.inf, math.inf
    return ratio, *ratio_interval(mean_estimate(moved), mean_estimate(shift))
