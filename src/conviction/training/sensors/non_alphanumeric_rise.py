"""Greedy samples turn into dots, dashes and other signs."""

from __future__ import annotations

from conviction.core.options import Option
from conviction.training.sensors.sensor import Samples, Sensor, Trace

__all__ = ["SENSOR"]

LIMIT = Option(
    name="max_non_alphanumeric",
    default=0.25,
    meaning="rise of the share of visible characters that are no letters or digits",
    above=0,
    at_most=1,
)


def _read(samples: Samples) -> float:
    before, now = samples.health
    return now.non_alphanumeric_share - before.non_alphanumeric_share


def _judge(run: Trace) -> str | None:
    rise, limit = run.now.readings["non_alphanumeric_rise"], run.guard.max_non_alphanumeric
    if rise > limit:
        return f"samples turn into signs (+{rise:.0%}, limit {limit:.0%})"
    return None


SENSOR = Sensor(name="non_alphanumeric_rise", judge=_judge, stops=True, limits=(LIMIT,), read_samples=_read)
