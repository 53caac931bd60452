"""A frozen forecast held to what happened. Pure functions over numbers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from conviction.core.forecast import Forecast, ForecastScore, Outlook
from conviction.core.protocols import AnswerScore

__all__ = ["brier", "score_forecast", "spearman"]

Pair = tuple[AnswerScore, AnswerScore]
"""Scores of the wanted and the other answer."""


def score_forecast(
    forecast: Forecast, before: Mapping[str, Pair], after: Mapping[str, Pair], *, trip: int | None
) -> ForecastScore:
    """Compare on the pairs of the test split, by their ids; trip: the step at which the guard stopped the run."""
    asked = [o for o in forecast.outlooks if o.split == "test" and o.role in {"target", "paraphrase"} and o.id in after]
    old, new = (np.array([_gap(scores[o.id]) for o in asked]) for scores in (before, after))
    expected = np.array([o.gap_nats - o.start_nats for o in asked])
    real = new - old
    wrong = old < 0
    right = np.array([o.right for o in asked])
    rate = float((new > 0)[wrong].mean()) if wrong.any() else 0.0
    foreseen = forecast.trouble.step if forecast.trouble is not None else None
    return ForecastScore(
        pairs=len(asked),
        spearman=spearman(expected, real),
        expected_nats=_mean(expected),
        real_nats=_mean(real),
        relative_error=abs(_mean(expected) - _mean(real)) / abs(_mean(real)) if len(real) and _mean(real) else None,
        chosen_nats=_both(asked, before, after, 0),
        rejected_nats=_both(asked, before, after, 1),
        wrong=int(wrong.sum()),
        flips=int((new > 0)[wrong].sum()),
        expected_flips=float(right[wrong].sum()),
        brier=brier(right[wrong], new[wrong] > 0),
        brier_constant=rate * (1 - rate) if wrong.any() else None,
        trip=trip,
        expected_trip=foreseen,
        trip_error=abs(foreseen - trip) / trip if foreseen is not None and trip is not None else None,
    )


def spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    """Rank correlation; None where a side does not vary."""
    from scipy.stats import spearmanr

    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(spearmanr(a, b)[0])


def brier(probabilities: NDArray[np.float64], happened: NDArray[np.bool_]) -> float | None:
    """Mean squared error of probabilities (Brier 1950); None without events."""
    return float(np.square(probabilities - happened).mean()) if len(happened) else None


def _gap(pair: Pair) -> float:
    return pair[0].logp_mean - pair[1].logp_mean


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else 0.0


def _both(
    asked: list[Outlook], before: Mapping[str, Pair], after: Mapping[str, Pair], side: int
) -> tuple[float, float]:
    """Mean movement of the wanted (0) or the other (1) answer: expected and real, nats."""
    expected = [(o.chosen_nats, o.rejected_nats)[side] for o in asked]
    real = [after[o.id][side].logp_sum - before[o.id][side].logp_sum for o in asked]
    return _mean(np.array(expected)), _mean(np.array(real))
