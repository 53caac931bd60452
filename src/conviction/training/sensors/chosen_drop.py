"""Chosen answers lose probability: likelihood displacement (Razin et al. 2410.08847)."""

from __future__ import annotations

import math

from conviction.core.options import Option
from conviction.training.sensors.sensor import Sensor, Trace

__all__ = ["SENSOR"]

LIMIT = Option(
    name="max_chosen_drop",
    default=0.5,
    meaning="nats per token that chosen answers may lose, mean of three steps",
    above=0,
)


def _judge(run: Trace) -> str | None:
    drops = [r.chosen_drop for r in run.history[-3:] if r.chosen_drop is not None]
    limit = run.guard.max_chosen_drop
    if len(drops) == 3 and (drop := math.fsum(drops) / 3) > limit:
        return f"chosen answers lost {drop:.2f} nats per token (limit {limit:g})"
    return None


SENSOR = Sensor(name="chosen_drop", judge=_judge, stops=True, limits=(LIMIT,))
