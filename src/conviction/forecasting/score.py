"""A frozen forecast held to what happened. Pure functions over numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conviction.core.protocols import AnswerScore
from conviction.forecasting.records import Forecast, ForecastScore, PairForecast

__all__ = ["brier", "score_forecast", "spearman"]

ScoredPair = tuple[AnswerScore, AnswerScore]
"""Scores of the wanted and the other answer."""


def score_forecast(
    forecast: Forecast,
    before: Mapping[str, ScoredPair],
    after: Mapping[str, ScoredPair] | None,
    *,
    guard_stop: int | None,
) -> ForecastScore:
    """Compare on the questions of the test split, by their ids.

    after  None where the guard stopped the run: the model that came back is not the one that was foreseen
    trip   the step at which it did
    """
    asked = [o for o in forecast.pair_forecasts if o.counts]
    expected = _mean([o.gap_nats - o.start_nats for o in asked])
    foreseen = forecast.predicted_stop.step if forecast.predicted_stop is not None else None
    wrong = [o for o in asked if o.start_nats < 0]  # as frozen: another dtype may rank a pair otherwise
    known: dict[str, Any] = dict.fromkeys(_MOVEMENTS) if after is None else _movements(asked, wrong, before, after)
    return ForecastScore(
        pairs=len(asked),
        expected_nats=expected,
        wrong=len(wrong),
        expected_flips=sum(o.p_correct for o in wrong),
        guard_stop=guard_stop,
        predicted_stop_step=foreseen,
        stop_error=abs(foreseen - guard_stop) / guard_stop if foreseen is not None and guard_stop else None,
        **known,
    )


_MOVEMENTS = (
    *("spearman", "real_nats", "relative_error", "chosen_nats", "rejected_nats"),
    *("flips", "brier", "brier_constant"),
)


def _movements(
    asked: Sequence[PairForecast],
    wrong: Sequence[PairForecast],
    before: Mapping[str, ScoredPair],
    after: Mapping[str, ScoredPair],
) -> dict[str, Any]:
    expected = np.array([o.gap_nats - o.start_nats for o in asked])
    moved = np.array([_gap(after[o.id]) - _gap(before[o.id]) for o in asked])
    flipped = np.array([_gap(after[o.id]) > 0 for o in wrong], dtype=np.bool_)
    rate = float(flipped.mean()) if len(flipped) else 0.0
    real = _mean(moved)
    return {
        "spearman": spearman(expected, moved),
        "real_nats": real,
        "relative_error": abs(_mean(expected) - real) / abs(real) if real else None,
        "chosen_nats": _both(asked, before, after, 0),
        "rejected_nats": _both(asked, before, after, 1),
        "flips": int(flipped.sum()),
        "brier": brier(np.array([o.p_correct for o in wrong]), flipped),
        "brier_constant": rate * (1 - rate) if len(flipped) else None,
    }


def spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    """Rank correlation; None where a side does not vary."""
    from scipy.stats import spearmanr

    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(spearmanr(a, b)[0])


def brier(probabilities: NDArray[np.float64], happened: NDArray[np.bool_]) -> float | None:
    """Mean squared error of probabilities (Brier 1950); None without events."""
    return float(np.square(probabilities - happened).mean()) if len(happened) else None


def _gap(pair: ScoredPair) -> float:
    return pair[0].logp_mean - pair[1].logp_mean


def _mean(values: Sequence[float] | NDArray[np.float64]) -> float:
    return float(np.mean(values)) if len(values) else 0.0


def _both(
    asked: Sequence[PairForecast], before: Mapping[str, ScoredPair], after: Mapping[str, ScoredPair], side: int
) -> tuple[float, float]:
    """Mean movement of the wanted (0) or the other (1) answer: expected and real, nats."""
    expected = [(o.chosen_nats, o.rejected_nats)[side] for o in asked]
    real = [after[o.id][side].logp_sum - before[o.id][side].logp_sum for o in asked]
    return _mean(expected), _mean(real)
