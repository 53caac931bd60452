"""Next-token entropy on held-out prompts falls (Shi et al. 2410.11677; Ren & Sutherland 2407.10490)."""

from __future__ import annotations

import math

from conviction.core.options import Option
from conviction.training.sensors.sensor import DriftMetrics, Sensor, Threshold

__all__ = ["SENSOR"]

LIMIT = Option(
    name="max_entropy_drop",
    default=0.3,
    meaning="share by which next-token entropy on held-out prompts may fall",
    above=0,
    at_most=1,
)


def _read(before: DriftMetrics, now: DriftMetrics) -> float | None:
    """As a share of what it was; None: there are no held-out prompts."""
    return None if math.isnan(before.entropy) else now.entropy / max(before.entropy, 1e-6) - 1


SENSOR = Sensor(
    name="entropy_change",
    judge=Threshold(
        limit=LIMIT,
        message="entropy fell by {value:.0%} (limit {limit:.0%})",
        value=lambda run: -run.now.readings["entropy_change"],
    ),
    stops=True,
    read_drift=_read,
    needs_health=True,
)
