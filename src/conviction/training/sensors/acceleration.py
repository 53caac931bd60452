"""A reward margin that grows faster and faster, where that of a sound run levels off."""

from __future__ import annotations

import math
from collections.abc import Sequence

from conviction.training.sensors.sensor import Sensor, Trace

__all__ = ["SENSOR"]

WINDOW = 6  # steps


def _judge(run: Trace) -> str | None:
    growth = None if run.now.margin is None else _acceleration([r.margin for r in run.history if r.margin is not None])
    if growth is None:
        return None
    return f"the margin accelerates ({growth[0]:+.2f}, then {growth[1]:+.2f} in six steps)"


def _acceleration(margins: Sequence[float]) -> tuple[float, float] | None:
    """Growth over the last two windows of the smoothed curve, if it speeds up; None if it levels off."""
    if len(margins) < 3 * WINDOW:
        return None
    old, middle, new = (math.fsum(margins[-k * WINDOW : len(margins) - (k - 1) * WINDOW]) / WINDOW for k in (3, 2, 1))
    first, second = middle - old, new - middle
    return (first, second) if first > 0.05 and second > 1.5 * first else None


SENSOR = Sensor(name="acceleration", judge=_judge, stops=False, simulated=True)
