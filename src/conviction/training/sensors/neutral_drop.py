"""Neutral text loses probability: mass is squeezed onto few tokens (Ren & Sutherland 2407.10490)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conviction.core.options import Option
from conviction.training.sensors.sensor import Sensor, Trace

if TYPE_CHECKING:
    from conviction.training.drift import DriftMetrics

__all__ = ["SENSOR"]

LIMIT = Option(name="max_neutral_drop", default=0.1, meaning="nats per token that neutral text may lose", above=0)


def _read(before: DriftMetrics, now: DriftMetrics) -> float:
    return before.neutral - now.neutral


def _judge(run: Trace) -> str | None:
    drop, limit = run.now.readings["neutral_drop"], run.guard.max_neutral_drop
    if drop > limit:
        return f"neutral text lost {drop:.2f} nats per token (limit {limit:g})"
    return None


SENSOR = Sensor(name="neutral_drop", judge=_judge, stops=True, limits=(LIMIT,), read_drift=_read, needs_health=True)
