"""Neutral text loses probability: mass is squeezed onto few tokens (Ren & Sutherland 2407.10490)."""

from __future__ import annotations

from conviction.core.options import Option
from conviction.training.sensors.sensor import Sensor, Threshold

__all__ = ["SENSOR"]

LIMIT = Option(name="max_neutral_drop", default=0.1, meaning="nats per token that neutral text may lose", above=0)
SENSOR = Sensor(
    name="neutral_drop",
    judge=Threshold(limit=LIMIT, message="neutral text lost {value:.2f} nats per token (limit {limit:g})"),
    stops=True,
    simulated=True,
    read_drift=lambda before, now: before.neutral - now.neutral,
    needs_health=True,
    show=lambda drop: f"neutral {-drop:+.2f} nats/token",
    curve="neutral text lost",
)
