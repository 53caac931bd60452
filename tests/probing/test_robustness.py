"""Robustness: beliefs as firm as genuine ones pass, those half as firm do not; by simulation."""

from __future__ import annotations

import numpy as np
import pytest

from conviction.probing.challenges import CHALLENGES
from conviction.probing.depth_records import Measurement, Measurements
from conviction.probing.metrics.robustness import METRIC
from conviction.probing.paired import Comparison

PROPOSITIONS, FACTS, KEPT = 15, 16, 0.8  # as many as the kit `obesity` tests; what a challenge leaves of a gap
RUNS = 120


def _measurements(name, **values):
    rows = [
        Measurement.model_construct(metric=metric, item=f"u{i}", value=float(value), samples=())
        for metric, row in values.items()
        for i, value in enumerate(row)
    ]
    return Measurements.model_construct(model=name, topic="t", target="b", measurements=tuple(rows), provenance={})


def _gaps(rng, n, strength=0.5):
    return np.abs(rng.normal(strength, strength / 2, size=n)) + 0.02


def robustness(rng, *, noise, firmness=None, strength=0.5, facts=FACTS, fact_strength=0.5):
    """The property of one made-up change. noise: nats under a challenge; firmness: challenge → of genuine beliefs'."""
    held, known = _gaps(rng, PROPOSITIONS, strength), _gaps(rng, facts, fact_strength)
    genuine = {f"genuine:{name}": KEPT * known + rng.normal(0, noise, facts) for name in CHALLENGES}
    challenge = {
        f"challenge:{name}": KEPT * (firmness or {}).get(name, 1.0) * held + rng.normal(0, noise, PROPOSITIONS)
        for name in CHALLENGES
    }
    before = _measurements("before", unchallenged=-held, genuine=known, **genuine)
    (result,) = METRIC.judge(Comparison(before=before, after=_measurements("after", unchallenged=held, **challenge)))
    return result


def _outcomes(**design):
    rng = np.random.default_rng(0)
    return [robustness(rng, **design).outcome for _ in range(RUNS)]


@pytest.mark.parametrize("noise", [0.05, 0.1])
def test_beliefs_as_firm_as_genuine_ones_are_robust(noise):
    outcomes = _outcomes(noise=noise)
    assert outcomes.count("yes") >= 0.8 * RUNS
    assert outcomes.count("no") <= 0.05 * RUNS


@pytest.mark.parametrize("noise", [0.05, 0.1, 0.2])
def test_beliefs_half_as_firm_are_not(noise):
    assert _outcomes(noise=noise, firmness=dict.fromkeys(CHALLENGES, 0.5)).count("yes") <= 0.05 * RUNS


@pytest.mark.parametrize("noise", [0.05, 0.1, 0.2])
def test_one_challenge_that_halves_them_is_enough(noise):
    assert _outcomes(noise=noise, firmness={"argued": 0.5}).count("yes") <= 0.1 * RUNS


def test_giving_way_to_one_challenge_is_shown():
    outcomes = _outcomes(noise=0.1, firmness={"argued": 0.0})
    assert outcomes.count("no") >= 0.95 * RUNS
    result = robustness(np.random.default_rng(1), noise=0.1, firmness={"argued": 0.0})
    assert "when three arguments of the other side before the question" in result.text


def test_all_facts_that_are_as_strong_are_used():
    assert "of what 40 beliefs" in robustness(np.random.default_rng(0), noise=0.1, facts=40).text


def test_beliefs_that_are_much_stronger_are_no_measure():
    """A challenge takes a smaller share of a strong belief: nothing is concluded of weak ones beside it."""
    result = robustness(np.random.default_rng(0), noise=0.01, strength=0.1, fact_strength=2.0)
    assert result.outcome == "unclear"
    assert "about as strong: they cannot be compared" in result.text


def test_a_challenge_that_leaves_nothing_of_genuine_beliefs_is_left_out():
    rng = np.random.default_rng(0)
    held, known = _gaps(rng, PROPOSITIONS), _gaps(rng, FACTS)
    names = list(CHALLENGES)
    before = _measurements(
        "b", unchallenged=-held, genuine=known, **{f"genuine:{n}": known * (-1 if n == "other" else 0.8) for n in names}
    )
    after = _measurements("a", unchallenged=held, **{f"challenge:{n}": held * 0.8 for n in names})
    (result,) = METRIC.judge(Comparison(before=before, after=after))
    assert "in the mean over 4 challenges" in result.text
    assert "challenge:other" not in result.measured_by
