"""Greedy samples become empty. A single one is no sign yet: a base model may end its answer before it begins."""

from __future__ import annotations

from conviction.core.options import Option
from conviction.training.sensors.sensor import Samples, Sensor, Threshold

__all__ = ["SENSOR"]

LIMIT = Option(name="max_empty", default=1, meaning="greedy samples that may become empty", type=int, at_least=0)


def _read(samples: Samples) -> int:
    """More empty samples than before."""
    return round(samples.rise("empty_rate") * len(samples.now))


SENSOR = Sensor(
    name="empty",
    judge=Threshold(limit=LIMIT, message="{value:.0f} samples became empty (limit {limit:g})"),
    stops=True,
    read_samples=_read,
)
