"""Two models' readings, unit by unit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from conviction.probing.depth_records import Measurements, Property

__all__ = ["Floats", "differences", "finite", "missing", "paired"]

Floats = NDArray[np.float64]


def paired(before: Measurements, after: Measurements, metrics: Sequence[str]) -> list[tuple[float, float]]:
    """(before, after) of every unit that both read."""
    return [
        (old, new)
        for metric in metrics
        for unit, old in before.of(metric).items()
        if (new := after.of(metric).get(unit)) is not None
    ]


def differences(before: Measurements, after: Measurements, metrics: Sequence[str]) -> Floats:
    """[units] after less before."""
    return np.array([new - old for old, new in paired(before, after, metrics)], dtype=np.float64)


def missing(metric: str, unit: str, why: str) -> Property:
    """A property that was not measured, which is never a property that is there."""
    return Property(metric=metric, outcome="not measured", value=None, unit=unit, n=0, text=why, readings=())


def finite(value: float) -> float | None:
    """A bound; None for one that is infinitely far."""
    return value if math.isfinite(value) else None
