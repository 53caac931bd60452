"""A preference loss that falls at once: a sign that a practitioner saw before a collapse."""

from __future__ import annotations

from conviction.core.options import Option
from conviction.training.sensors.sensor import Sensor, Threshold, Trace

__all__ = ["SENSOR"]

MEANING = "a preference loss below it in the first tenth of a run is a sign"
LIMIT = Option(name="early_loss", default=0.3, meaning=MEANING, above=0)
MESSAGE = "loss {value:.2f} within the first tenth of the run (sign under {limit:g})"


def _loss(run: Trace) -> float | None:
    """Only of a loss over pairs: likelihood may begin at any value."""
    return run.now.loss if run.now.margin is not None and run.now.step <= run.total_steps / 10 else None


JUDGE = Threshold(limit=LIMIT, message=MESSAGE, value=_loss, floor=True)
SENSOR = Sensor(name="early_loss", judge=JUDGE, stops=False, simulated=True)
