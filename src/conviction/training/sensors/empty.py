"""Greedy samples become empty: one that was not is enough."""

from __future__ import annotations

from conviction.training.sensors.sensor import Samples, Sensor, Trace

__all__ = ["SENSOR"]


def _read(samples: Samples) -> int:
    """More empty samples than before."""
    return round(samples.rise("empty_rate") * len(samples.now))


def _judge(run: Trace) -> str | None:
    more = run.now.readings["empty"]
    return f"{more} samples became empty" if more > 0 else None


SENSOR = Sensor(name="empty", judge=_judge, stops=True, read_samples=_read)
