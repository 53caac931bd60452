"""Statistics: golden numbers from independent sources, and properties."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from conviction.core.statistics import (
    mean_estimate,
    mean_interval,
    mean_test,
    min_detectable_effect,
    paired_ratio_interval,
    ratio_below_p,
    ratio_interval,
    ratio_of_means,
    smallest_p,
    win_share,
)

# eighths add up without rounding, so that ties are ties
samples = arrays(np.float64, st.integers(2, 10), elements=st.integers(-40, 40).map(lambda k: k / 8))


@given(samples)
@settings(deadline=None)
def testsign_flip_p_equals_enumeration(d):
    signs = np.array(list(itertools.product([1, -1], repeat=d.size)))
    means = np.abs(signs @ d)
    expected = float((means >= abs(d.sum())).mean())
    assert mean_test(d).p_value == pytest.approx(expected)


@given(samples)
@settings(deadline=None)
def test_swapping_the_sign_swaps_the_interval_and_keeps_p(d):
    a, b = mean_test(d), mean_test(-d)
    assert a.p_value == b.p_value
    assert a.interval.mean == -b.interval.mean
    assert a.interval.low == pytest.approx(-b.interval.high)


def test_below_thirty_the_interval_is_students_t():
    d = np.array([0.8, 0.6, 0.9, 0.4, 0.7])
    result = mean_test(d)
    half = stats.t.ppf(0.975, 4) * d.std(ddof=1) / math.sqrt(5)
    assert (result.interval.low, result.interval.high) == pytest.approx((d.mean() - half, d.mean() + half))
    assert result.interval.method == "t"


def test_from_thirty_on_it_is_bca():
    assert mean_test(np.random.default_rng(1).normal(size=30)).interval.method == "BCa"


def test_coverage_of_the_interval_at_n_5_is_near_95_percent():
    rng = np.random.default_rng(7)
    hits = [i.low <= 0 <= i.high for _ in range(2000) for i in [mean_test(rng.normal(size=5)).interval]]
    assert 0.935 < np.mean(hits) < 0.965


def test_five_pairs_cannot_reach_significance():
    assert smallest_p(5) == 0.0625 == mean_test(np.ones(5) + np.arange(5)).p_value
    assert smallest_p(6) < 0.05


# A priori power tables for the paired t-test (80 %, alpha 5 %), as G*Power and statsmodels' TTestPower give them.
@pytest.mark.parametrize(("n", "effect"), [(5, 1.68), (10, 1.00), (20, 0.66), (50, 0.40), (100, 0.28), (500, 0.13)])
def test_minimum_detectable_effect(n, effect):
    assert min_detectable_effect(n) == pytest.approx(effect, abs=0.005)


def test_wilson_interval():
    # Wilson (1927) for 9 of 10, as R's binom::binom.wilson(9, 10)
    share = win_share(9, 10)
    assert (share.low, share.high) == pytest.approx((0.59585, 0.98213), abs=1e-4)


def test_one_and_constant_differences_have_no_false_precision():
    one = mean_test(np.array([0.3]))
    assert math.isinf(one.interval.low)
    assert one.effect_size is None
    assert mean_test(np.zeros(4)).p_value == 1.0


def test_sampled_p_is_never_zero_and_agrees_with_t():
    rng = np.random.default_rng(3)
    assert mean_test(np.full(60, 2.0) + rng.normal(size=60) * 0.1).p_value == pytest.approx(1e-4)
    d = rng.normal(0.3, 1, 60)
    assert mean_test(d).p_value == pytest.approx(stats.ttest_1samp(d, 0).pvalue, abs=0.02)


def test_forty_propositions_get_an_exact_p():
    assert mean_test(np.ones(40)).p_value == 2 / 2**40
    d = np.random.default_rng(5).normal(0.2, 1, 42)
    assert mean_test(d).p_value == pytest.approx(stats.ttest_1samp(d, 0).pvalue, rel=0.1)


def _ratios(rng, n, noise=0.1):
    """[n] shares kept of gaps that vary, and the gaps: the true ratio of means is 0.8."""
    gaps = np.abs(rng.normal(0.5, 0.25, size=n)) + 0.02
    return 0.8 * gaps + rng.normal(0, noise, size=n), gaps


@pytest.mark.parametrize(("ours", "theirs"), [(15, 15), (15, 8)])
def test_the_interval_of_a_ratio_of_ratios_covers_as_it_promises(ours, theirs):
    """Percentile bootstrap covers 0.88 to 0.91 at these sizes."""
    rng = np.random.default_rng(1)
    draws = [(_ratios(rng, ours), _ratios(rng, theirs)) for _ in range(2000)]
    bounds = [ratio_interval(ratio_of_means(*a), ratio_of_means(*b)) for a, b in draws]
    assert 0.93 <= np.mean([low <= 1 <= high for low, high in bounds]) <= 0.97


def test_the_interval_of_a_paired_ratio_covers_as_it_promises():
    rng = np.random.default_rng(2)
    bounds = [paired_ratio_interval(*_ratios(rng, 15)) for _ in range(2000)]
    assert 0.93 <= np.mean([low <= 0.8 <= high for low, high in bounds]) <= 0.97


def test_the_interval_of_independent_means_covers_as_it_promises():
    rng = np.random.default_rng(3)
    draws = [(rng.normal(0.3, 0.5, size=10), rng.normal(1.0, 0.5, size=15)) for _ in range(2000)]
    bounds = [ratio_interval(mean_estimate(a), mean_estimate(b)) for a, b in draws]
    assert 0.93 <= np.mean([low <= 0.3 <= high for low, high in bounds]) <= 0.97


@pytest.mark.parametrize("wordings", [1, 3])
@pytest.mark.parametrize("shape", ["normal", "skewed"])
def test_the_interval_of_a_mean_of_fifteen_covers_as_it_promises(shape, wordings):
    """Wordings are nested in propositions and averaged there: their spread is part of the interval of the mean."""
    rng = np.random.default_rng(6)

    def draws(size):
        return rng.normal(0, 1, size) if shape == "normal" else rng.gamma(4, 0.5, size) - 2

    samples = [0.3 + draws(15) + draws((15, wordings)).mean(1) for _ in range(1000)]
    bounds = [mean_interval(sample) for sample in samples]
    assert 0.93 <= np.mean([b.low <= 0.3 <= b.high for b in bounds]) <= 0.97


def test_wordings_as_if_they_were_propositions_cover_too_little():
    """The same with every wording a unit: what the test above would show if wordings were not averaged first."""
    rng = np.random.default_rng(6)
    samples = [(rng.normal(0, 1, (15, 1)) + rng.normal(0, 1, (15, 3))).ravel() for _ in range(300)]
    bounds = [stats.ttest_1samp(sample, 0.0).confidence_interval(0.95) for sample in samples]
    assert np.mean([b.low <= 0 <= b.high for b in bounds]) < 0.9


def test_a_ratio_over_what_may_be_nothing_is_unbounded():
    rng = np.random.default_rng(4)
    nothing = rng.normal(0, 1, size=15)
    assert ratio_interval(mean_estimate(nothing + 1), mean_estimate(nothing)) == (-math.inf, math.inf)
    assert paired_ratio_interval(nothing + 1, nothing) == (-math.inf, math.inf)


def test_fieller_agrees_with_the_p_value_at_its_bound():
    """A one-sided 95 % bound of the ratio is where the one-sided p is 5 %, but for the degrees of freedom."""
    rng = np.random.default_rng(5)
    ours, theirs = ratio_of_means(*_ratios(rng, 200)), ratio_of_means(*_ratios(rng, 200))
    _, high = ratio_interval(ours, theirs, alpha=0.1)
    assert ratio_below_p(ours, theirs, high) == pytest.approx(0.05, abs=1e-3)
    assert ratio_below_p(ours, theirs, ours.value / theirs.value) == pytest.approx(0.5)
