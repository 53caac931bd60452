"""A training run as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from conviction.core.charts import ON_WHITE, WIDTH, Palette, altair
from conviction.training.sensors import SENSORS

__all__ = ["training_chart"]

CURVES = {
    "loss": "loss",
    "margin": "reward margin",
    "logp_mean": "log-prob per token",
}


def training_chart(
    steps: Sequence[Mapping[str, Any]], stop: int | None = None, palette: Palette = ON_WHITE
) -> Any | None:
    """Curves of a run, each step in the colour of the guard's zone; a line at ``stop``, where the guard stopped it.

    None where there are no steps.
    """
    curves = CURVES | {sensor.name: sensor.curve for sensor in SENSORS.values() if sensor.curve}
    rows = [
        {
            "step": line["step"],
            "what": curves[name],
            "value": value,
            "zone": palette.of_zone(str((line.get("guard") or {}).get("zone"))),
        }
        for line in steps
        for name, value in {**line, **(line.get("guard") or {})}.items()
        if name in curves and isinstance(value, int | float)
    ]
    if not rows:
        return None
    alt = altair()
    panels = []
    for name in dict.fromkeys(row["what"] for row in rows):
        curve = alt.Chart(alt.Data(values=[row for row in rows if row["what"] == name])).encode(
            x=alt.X("step:Q", axis=alt.Axis(tickMinStep=1)),
            y=alt.Y("value:Q", title=name, scale=alt.Scale(zero=False)),
        )
        zones = curve.mark_point(filled=True, size=26, opacity=1).encode(color=alt.Color("zone:N", scale=None))
        mark = alt.Chart(alt.Data(values=[{"step": stop}])).mark_rule(color=palette.away, strokeDash=[4, 3])
        layers = [curve.mark_line(color=palette.faint), zones, *([mark.encode(x="step:Q")] if stop else [])]
        panels.append(alt.layer(*layers).properties(width=WIDTH / 2 - 70, height=130))
    return alt.concat(*panels, columns=2)
