"""What the runs of the battery say: the forecast beside its baselines, on each model, with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import norm

from conviction.forecasting.expectations import LEAST_ERROR, RELATIVE_ERROR
from conviction.forecasting.score import spearman

Row = Mapping[str, Any]
FORECAST = "forecast"
GUESSES = (FORECAST, "nothing", "pilot", "gradients", "projection")
DRAWS = 2000


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """By model and over both: measures of the forecast and of the baselines, stops, verdicts, seconds."""
    models = sorted({row["model"] for row in rows})
    return {model: _of([row for row in rows if row["model"] == model]) for model in models} | {"all": _of(rows)}


def _of(rows: Sequence[Row]) -> dict[str, Any]:
    ended = [row for row in rows if row["guard_stop"] is None and row["pairs"]]
    stopped = [row for row in rows if row["guard_stop"] is not None]
    trainable = [row for row in rows if row["verdict"] == "trainable"]
    return {
        "runs": len(rows),
        "ended": len(ended),
        "guesses": {name: _measures(ended, name) for name in GUESSES},
        "by_method": {
            method: {name: _median([_spearman(r, name) for r in ended if _method(r) == method]) for name in GUESSES}
            for method in sorted({_method(row) for row in ended})
        },
        "stopped": len(stopped),
        "stops_expected": sum(row["predicted_stop"] is not None for row in stopped),
        "stop_step_errors": [row["score"]["stop_error"] for row in stopped if row["score"]["stop_error"] is not None],
        "false_alarms": sum(row["predicted_stop"] is not None for row in ended),
        "trainable": len(trainable),
        "trainable_and_stopped": [_name(row) for row in trainable if row["guard_stop"] is not None],
        "seconds": {
            "forecast": sum(row["forecast_seconds"]["whole"] for row in rows),
            "training": sum(row["training_seconds"] for row in rows),
        },
    }


def _method(row: Row) -> str:
    return str(row["settings"]).split(" ")[0] if row["settings"] != "as named" else "dpo"


def _name(row: Row) -> str:
    return f"{row['model']} {row['data']} {row['settings']}"


def _measures(rows: Sequence[Row], name: str) -> dict[str, Any]:
    return {
        "median_spearman": _interval(rows, lambda drawn: _median([_spearman(row, name) for row in drawn])),
        "median_relative_error": _interval(rows, lambda drawn: _median([_relative(row, name) for row in drawn])),
        "brier": _interval(rows, lambda drawn: _brier(drawn, name)),
    }


def _interval(rows: Sequence[Row], measure: Callable[[Sequence[Row]], float | None]) -> list[float | None]:
    """The measure, and its 95 % interval by bootstrap over runs."""
    rng, drawn = np.random.default_rng(0), list[float]()
    for _ in range(DRAWS if len(rows) > 1 else 0):
        value = measure([rows[i] for i in rng.integers(len(rows), size=len(rows))])
        if value is not None:
            drawn.append(value)
    ends = [float(v) for v in np.quantile(drawn, [0.025, 0.975])] if drawn else [None, None]
    return [measure(rows) if rows else None, *ends]


def _moved(row: Row, name: str) -> np.ndarray[Any, Any]:
    if name == FORECAST:
        return np.array([pair["gap_nats"] - pair["start_nats"] for pair in row["pairs"]])
    return np.array([pair["baselines"][name] for pair in row["pairs"]])


def _real(row: Row) -> np.ndarray[Any, Any]:
    return np.array([pair["real_gap_nats"] - pair["start_nats"] for pair in row["pairs"]])


def _spearman(row: Row, name: str) -> float | None:
    """None for a guess that does not vary: it ranks nothing."""
    return spearman(_moved(row, name), _real(row))


def _relative(row: Row, name: str) -> float | None:
    real = float(_real(row).mean())
    return abs(float(_moved(row, name).mean()) - real) / abs(real) if real else None


def _brier(rows: Sequence[Row], name: str) -> float | None:
    terms = [
        (_probability(pair, name) - (pair["real_gap_nats"] > 0)) ** 2
        for row in rows
        for pair in row["pairs"]
        if pair["start_nats"] < 0
    ]
    return math.fsum(terms) / len(terms) if terms else None


def _probability(pair: Mapping[str, Any], name: str) -> float:
    if name == FORECAST:
        return float(pair["p_correct"])
    moved = pair["baselines"][name]
    return float(norm.cdf((pair["start_nats"] + moved) / math.hypot(LEAST_ERROR, RELATIVE_ERROR * moved)))


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None
