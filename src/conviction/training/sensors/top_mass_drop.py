"""The likeliest tokens lose probability on held-out prompts: the model no longer knows what to say (2410.11677)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from conviction.core.options import Option
from conviction.training.sensors.sensor import Sensor, Trace

if TYPE_CHECKING:
    from conviction.training.drift import DriftMetrics

__all__ = ["SENSOR"]

LIMIT = Option(
    name="max_top_mass_drop",
    default=0.2,
    meaning="probability that the ten likeliest tokens on held-out prompts may lose",
    above=0,
    at_most=1,
)


def _read(before: DriftMetrics, now: DriftMetrics) -> float | None:
    """None: there are no held-out prompts."""
    return None if math.isnan(before.top_mass) else before.top_mass - now.top_mass


def _judge(run: Trace) -> str | None:
    drop, limit = run.now.readings["top_mass_drop"], run.guard.max_top_mass_drop
    if drop > limit:
        return f"the ten likeliest tokens lost {drop:.2f} (limit {limit:g})"
    return None


SENSOR = Sensor(name="top_mass_drop", judge=_judge, stops=True, limits=(LIMIT,), read_drift=_read, needs_health=True)
