"""Next-token entropy on held-out prompts falls (Shi et al. 2410.11677; Ren & Sutherland 2407.10490)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from conviction.core.options import Option
from conviction.training.sensors.sensor import Sensor, Trace

if TYPE_CHECKING:
    from conviction.training.drift import DriftMetrics

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


def _judge(run: Trace) -> str | None:
    change, limit = run.now.readings["entropy_change"], run.guard.max_entropy_drop
    if -change > limit:
        return f"entropy fell by {-change:.0%} (limit {limit:.0%})"
    return None


SENSOR = Sensor(name="entropy_change", judge=_judge, stops=True, limits=(LIMIT,), read_drift=_read, needs_health=True)
