"""Means of values that share two things at once, such as a cause and an outcome. Pure functions over numpy arrays.

Questions about one outcome are no independent draws, nor are those about one cause: a model that was moved on one
cause is moved in every question that begins with it. A test that flips signs by outcome alone then finds a change
in 46 % of simulated cases where there is none (``tests/core/test_clustered.py``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from conviction.core.statistics import Estimate, sign_flip_p

Floats = NDArray[np.float64]

__all__ = ["ClusteredMean", "clustered_mean"]


@dataclass(frozen=True)
class ClusteredMean:
    """Mean over outcomes of means over causes.

    estimate  with the two-way clustered variance, and one degree of freedom less than the fewer clusters;
              None: fewer than two clusters of either kind
    p_value   two-sided: the largest of sign flips by outcome, sign flips by cause, and a t-test with that variance
    outcomes  how many
    """

    mean: float
    estimate: Estimate | None
    p_value: float
    outcomes: int


def clustered_mean(values: Floats, causes: Sequence[str], outcomes: Sequence[str], *, seed: int = 0) -> ClusteredMean:
    """Of one value at least, each with its cause and outcome; a pair may occur once.

    Each of the three tests is right where the others may fail: flips of one kind are too bold where clusters of the
    other kind share an effect, and a t-test rests on a variance that few clusters estimate badly. The largest p-value
    is right where any of them is; simulated rates are in the tests.
    """
    by_cause, by_outcome = (np.unique(names, return_inverse=True)[1] for names in (causes, outcomes))
    counts = np.bincount(by_outcome)
    weighed = values / (counts.size * counts[by_outcome])
    mean = math.fsum(weighed)
    flips = [sign_flip_p(_sums(group, weighed), seed) for group in (by_cause, by_outcome)]
    fewer = min(counts.size, int(by_cause.max()) + 1)
    if fewer < 2:
        return ClusteredMean(mean, None, max(flips), counts.size)
    rest = weighed - mean / (counts.size * counts[by_outcome])
    variance = _two_way_variance(rest, by_cause, by_outcome)
    estimate = Estimate(mean, variance, fewer - 1)
    return ClusteredMean(mean, estimate, max(*flips, _t_test(estimate)), counts.size)


def _two_way_variance(rest: Floats, first: NDArray[np.intp], second: NDArray[np.intp]) -> float:
    """The sum of both one-way clustered variances.

    Cameron, Gelbach & Miller (2011) take off what both count, the values' own spread. With ten clusters of unequal
    size that interval covers 0.92 to 0.96 in simulation, and this one 0.94 to 0.98.
    """
    return sum(_sum_of_squares(_sums(group, rest)) for group in (first, second))


def _sums(group: NDArray[np.intp], values: Floats) -> Floats:
    return np.bincount(group, values).astype(np.float64)


def _sum_of_squares(sums: Floats) -> float:
    return sums.size / (sums.size - 1) * float(np.square(sums).sum())


def _t_test(estimate: Estimate) -> float:
    from scipy import stats

    if estimate.variance <= 0:
        return float(estimate.value == 0)
    return float(2 * stats.t.sf(abs(estimate.value) / math.sqrt(estimate.variance), estimate.df))
