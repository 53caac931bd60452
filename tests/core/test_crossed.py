"""A mean over propositions and seeds: how often its interval covers, and how often it finds what is not there."""

from __future__ import annotations

import numpy as np
import pytest

from conviction.core.crossed import crossed_mean
from conviction.core.statistics import mean_interval, mean_test

RUNS = 1500


def drawn(repeat: float, *, item: float = 1.0, rest: float = 0.5, items: int = 15, repeats: int = 3, mean: float = 0.0):
    """RUNS tables [items, repeats] of a mean with effects of these standard deviations."""
    rng = np.random.default_rng(5)
    of_item, of_repeat = rng.normal(0, item, (RUNS, items, 1)), rng.normal(0, repeat, (RUNS, 1, repeats))
    return mean + of_item + of_repeat + rng.normal(0, rest, (RUNS, items, repeats))


@pytest.mark.long
@pytest.mark.parametrize("repeat", [0.0, 0.3, 1.0, 3.0])
def test_the_interval_covers_as_it_promises(repeat):
    """Between-seed variance none, a tenth of that between propositions, equal to it, and nine times as much."""
    intervals = [crossed_mean(cells).interval for cells in drawn(repeat)]
    assert 0.93 <= np.mean([i.low <= 0 <= i.high for i in intervals]) <= 0.97


@pytest.mark.long
def test_a_component_that_is_estimated_below_0_is_none():
    """Where most of the spread is of single values: 0.97 covered in simulation, 0.92 with a component below 0."""
    intervals = [crossed_mean(cells).interval for cells in drawn(0.0, item=0.3, rest=1.0)]
    assert 0.95 <= np.mean([i.low <= 0 <= i.high for i in intervals]) <= 0.99


def test_an_interval_over_propositions_alone_does_not():
    """What is replaced, on the same draws: a control that can fail, and does."""
    intervals = [mean_interval(cells.mean(axis=1)) for cells in drawn(1.0)[:400]]
    assert np.mean([i.low <= 0 <= i.high for i in intervals]) < 0.75


@pytest.mark.long
@pytest.mark.parametrize("repeat", [0.0, 1.0, 3.0])
def test_a_shift_is_found_in_at_most_5_percent_where_there_is_none(repeat):
    assert np.mean([crossed_mean(cells).p_value < 0.05 for cells in drawn(repeat)]) <= 0.06


def test_a_shift_that_is_there_is_found():
    assert np.mean([crossed_mean(cells).p_value < 0.05 for cells in drawn(0.2, mean=1.0)[:200]]) > 0.85


@pytest.mark.parametrize("items", [9, 40])
def test_with_one_seed_it_is_the_interval_over_propositions(items):
    cells = drawn(1.0, items=items, repeats=1)[0]
    result, alone = crossed_mean(cells), mean_test(cells[:, 0])
    assert (result.interval, result.p_value) == (alone.interval, alone.p_value)


def test_seeds_that_do_not_differ_count_as_one():
    one = drawn(0.0, repeats=1)[0]
    result, alone = crossed_mean(np.repeat(one, 3, axis=1)).interval, mean_interval(one[:, 0])
    assert (result.mean, result.low, result.high) == pytest.approx((alone.mean, alone.low, alone.high))
    same = crossed_mean(np.ones((5, 3)))
    assert (same.interval.low, same.interval.high) == (1.0, 1.0)
    assert crossed_mean(np.zeros((5, 3))).p_value == 1.0
