"""A preference loss that falls at once: a sign that a practitioner saw before a collapse."""

from __future__ import annotations

from conviction.core.options import Option
from conviction.training.sensors.sensor import Sensor, Trace

__all__ = ["SENSOR"]

LIMIT = Option(
    name="early_loss",
    default=0.3,
    meaning="a preference loss below it in the first tenth of a run is a sign",
    above=0,
)


def _judge(run: Trace) -> str | None:
    """Only of a loss over pairs: likelihood may begin at any value."""
    now, limit = run.now, run.guard.early_loss
    if now.margin is not None and now.loss < limit and now.step <= run.total_steps / 10:
        return f"loss {now.loss:.2f} within the first tenth of the run (sign under {limit:g})"
    return None


SENSOR = Sensor(name="early_loss", judge=_judge, stops=False, limits=(LIMIT,))
