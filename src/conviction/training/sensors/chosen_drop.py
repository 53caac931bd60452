"""Chosen answers lose probability: likelihood displacement (Razin et al. 2410.08847)."""

from __future__ import annotations

import math

from conviction.core.options import Option
from conviction.training.sensors.sensor import Sensor, Threshold, Trace

__all__ = ["SENSOR"]

MEANING = "nats per token that chosen answers may lose, mean of the last three steps"
LIMIT = Option(name="max_chosen_drop", default=0.5, meaning=MEANING, above=0)
MESSAGE = "chosen answers lost {value:.2f} nats per token (limit {limit:g})"


def _mean(run: Trace) -> float | None:
    drops = [r.chosen_drop for r in run.history[-3:] if r.chosen_drop is not None]
    return math.fsum(drops) / len(drops) if drops else None  # of those there are: a first step can break a model


SENSOR = Sensor(
    name="chosen_drop", judge=Threshold(limit=LIMIT, message=MESSAGE, value=_mean), stops=True, simulated=True
)
