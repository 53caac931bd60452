"""Greedy samples repeat themselves."""

from __future__ import annotations

from conviction.core.options import Option
from conviction.training.sensors.sensor import Samples, Sensor, Trace

__all__ = ["SENSOR"]

LIMIT = Option(
    name="max_repetition",
    default=0.25,
    meaning="rise of the share of repeated 4-grams in greedy samples",
    above=0,
    at_most=1,
)


def _read(samples: Samples) -> float:
    before, now = samples.health
    return now.repeated_4gram_rate - before.repeated_4gram_rate


def _judge(run: Trace) -> str | None:
    rise, limit = run.now.readings["repetition_rise"], run.guard.max_repetition
    if rise > limit:
        return f"samples repeat themselves (+{rise:.0%}, limit {limit:.0%})"
    return None


SENSOR = Sensor(name="repetition_rise", judge=_judge, stops=True, limits=(LIMIT,), read_samples=_read)
