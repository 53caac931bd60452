"""The likeliest tokens lose probability on held-out prompts: the model no longer knows what to say (2410.11677)."""

from __future__ import annotations

import math

from conviction.core.options import Option
from conviction.training.sensors.sensor import DriftMetrics, Sensor, Threshold

__all__ = ["SENSOR"]

MEANING = "probability that the ten likeliest tokens on held-out prompts may lose"
LIMIT = Option(name="max_top_mass_drop", default=0.2, meaning=MEANING, above=0, at_most=1)


def _read(before: DriftMetrics, now: DriftMetrics) -> float | None:
    """None: there are no held-out prompts."""
    return None if math.isnan(before.top_mass) else before.top_mass - now.top_mass


JUDGE = Threshold(limit=LIMIT, message="the ten likeliest tokens lost {value:.2f} (limit {limit:g})")
SENSOR = Sensor(name="top_mass_drop", judge=JUDGE, stops=True, read_drift=_read, needs_health=True)
