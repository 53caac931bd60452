"""A large reward margin: a sign that a practitioner saw before a collapse, and no proof of one."""

from __future__ import annotations

from conviction.core.options import Option
from conviction.training.sensors.sensor import Sensor, Trace

__all__ = ["SENSOR"]

SIGN = Option(name="margin_sign", default=1.5, meaning="a reward margin over it is a sign", above=0)
CAP = Option(name="margin_cap", default=2.0, meaning="a reward margin over it is a second sign", above=0)


def _judge(run: Trace) -> str | None:
    margin = run.now.margin
    for bound in (run.guard.margin_cap, run.guard.margin_sign):
        if margin is not None and margin > bound:
            return f"reward margin {margin:.2f} (sign over {bound:g})"
    return None


SENSOR = Sensor(name="margin", judge=_judge, stops=False, simulated=True, limits=(SIGN, CAP))
