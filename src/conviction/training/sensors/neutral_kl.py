"""Distance from the untouched model on neutral text: KL divergence, for runs on a topic.

The judge estimates the same divergence on what the untouched model wrote (``probing/metrics/locality.py``) and calls a
change harmful beyond ``SURPRISE``. Here it is exact, over the whole vocabulary, at every few tokens of neutral text.
"""

from __future__ import annotations

import math

from conviction.core.options import Option
from conviction.probing.metrics.locality import SURPRISE
from conviction.training.sensors.sensor import DriftMetrics, Sensor, Threshold

__all__ = ["SENSOR"]

MEANING = "KL divergence from the untouched model on neutral text, nats per token; of runs on a topic"
LIMIT = Option(name="max_neutral_kl", default=SURPRISE, meaning=MEANING, above=0)
MESSAGE = "KL divergence from the untouched model {value:.2f} nats per token on neutral text (limit {limit:g})"


def _read(_before: DriftMetrics, now: DriftMetrics) -> float | None:
    """None: the run has no topic."""
    return None if math.isnan(now.kl) else now.kl


SENSOR = Sensor(
    name="neutral_kl",
    judge=Threshold(limit=LIMIT, message=MESSAGE),
    stops=True,
    read_drift=_read,
    needs_health=True,
)
