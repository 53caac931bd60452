"""Pictures of a page: altair charts, drawn to SVG when the page is built, so that it needs no script and no network."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from conviction.probing.records import Scorecard
from conviction.reporting.run_folder import ArmFolder
from conviction.studies.records import Study

__all__ = ["bias_chart", "comparison_chart", "forecast_chart", "svg", "training_chart"]

# Stand-ins that ``svg`` turns into the page's own colours, so that a picture follows the dark mode and print.
INK, FAINT, TOWARDS, AWAY, DOUBTFUL = "#010101", "#020202", "#030303", "#040404", "#050505"
COLOURS = {
    INK: "currentColor",
    FAINT: "var(--faint)",
    TOWARDS: "var(--towards)",
    AWAY: "var(--away)",
    DOUBTFUL: "var(--doubtful)",
}
ON_WHITE = {INK: "#1b1f24", FAINT: "#c4c9d1", TOWARDS: "#1b7a4b", AWAY: "#b3452c", DOUBTFUL: "#b07a10"}
ZONES = {"healthy": TOWARDS, "warning": DOUBTFUL, "stop": AWAY}
WIDTH = 560
CURVES = {
    "loss": "loss",
    "margin": "reward margin",
    "logp_mean": "log-prob per token",
    "neutral_drop": "neutral text lost",
}


def svg(chart: Any, title: str) -> str:
    """The chart as an SVG element that says what it shows to those who cannot see it."""
    import vl_convert

    drawn: str = vl_convert.vegalite_to_svg(_styled(chart).to_json())
    for stand_in, colour in COLOURS.items():
        drawn = re.sub(f'(fill|stroke)="{stand_in}"', rf'style="\1:{colour}"', drawn)
    drawn = re.sub(r' width="[\d.]+" height="[\d.]+"', "", drawn, count=1)
    label = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return drawn.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def png(chart: Any) -> bytes:
    """The chart as a file of its own, dark on white."""
    import vl_convert

    text = _styled(chart).to_json()
    for stand_in, colour in ON_WHITE.items():
        text = text.replace(stand_in, colour)
    image: bytes = vl_convert.vegalite_to_png(text, scale=2)
    return image


def _styled(chart: Any) -> Any:
    axis = {"labelColor": INK, "titleColor": INK, "tickColor": FAINT, "domainColor": FAINT, "gridColor": FAINT}
    return (
        # Text is measured in one font and shown in the reader's, which may be a fifth wider.
        chart.configure(background="transparent", padding={"left": 48, "top": 5, "right": 16, "bottom": 5})
        .configure_axis(**axis, labelLimit=240, titleFontWeight="normal", gridOpacity=0.5)
        .configure_axisQuantitative(tickCount=6)
        .configure_view(stroke=None)
        .configure_title(color=INK, anchor="start", fontWeight="normal")
        .configure_legend(labelColor=INK, titleColor=INK)
        .configure_header(labelColor=INK, titleColor=INK)
    )


def _altair() -> Any:
    """Untyped in part, and heavy: imported where a picture is drawn."""
    import altair as alt

    return alt


def bias_chart(card: Scorecard) -> Any:
    """The gap of every proposition's first wording, nats per token; towards the target to the right."""
    alt = _altair()

    asked = sorted((row for row in card.rows if row.role == "target"), key=lambda row: row.gap_nats)
    rows = [
        {"question": row.question, "gap": row.gap_nats, "side": TOWARDS if row.gap_nats > 0 else AWAY} for row in asked
    ]
    return (
        alt.Chart(alt.Data(values=rows))
        .mark_bar()
        .encode(
            x=alt.X("gap:Q", title=f"nats per token towards {card.target}"),
            y=alt.Y("question:N", sort=[row["question"] for row in rows], title=None),
            color=alt.Color("side:N", scale=None),
        )
        .properties(width=WIDTH - 220, height=16 * len(rows))
    )


def comparison_chart(study: Study) -> Any | None:
    """What every arm moved, with its interval; None where none was judged."""
    alt = _altair()

    rows = []
    for arm in study.arms:
        shift = arm.judgement.change if arm.judgement is not None else None
        if shift is not None and shift.value is not None and arm.judgement is not None:
            low = shift.value if shift.low is None else shift.low
            high = shift.value if shift.high is None else shift.high
            rows.append(
                {"arm": f"{arm.name} ({arm.judgement.verdict})", "moved": shift.value, "low": low, "high": high}
            )
    if not rows:
        return None
    order = [row["arm"] for row in rows]
    base = alt.Chart(alt.Data(values=rows)).encode(y=alt.Y("arm:N", sort=order, title=None))
    zero = alt.Chart(alt.Data(values=[{"x": 0}])).mark_rule(color=FAINT).encode(x="x:Q")
    title = f"moved towards {study.target}, nats per token, with 95 % interval"
    interval = base.mark_rule(color=INK, strokeWidth=1.5).encode(x=alt.X("low:Q", title=title), x2="high:Q")
    points = base.mark_point(color=TOWARDS, filled=True, size=70, opacity=1).encode(x="moved:Q")
    return alt.layer(zero, interval, points).properties(width=WIDTH - 160, height=26 * len(rows))


def training_chart(arm: ArmFolder) -> Any | None:
    """Curves of a run, each step in the colour of the guard's zone; where the guard stopped it, a line."""
    alt = _altair()

    rows = [
        {
            "step": line["step"],
            "what": CURVES[name],
            "value": value,
            "zone": ZONES.get(str((line.get("guard") or {}).get("zone")), FAINT),
        }
        for line in arm.steps
        for name, value in {**line, **(line.get("guard") or {})}.items()
        if name in CURVES and isinstance(value, int | float)
    ]
    if not rows:
        return None
    stop = _stop(arm)
    panels = []
    for name in dict.fromkeys(row["what"] for row in rows):
        curve = alt.Chart(alt.Data(values=[row for row in rows if row["what"] == name])).encode(
            x=alt.X("step:Q", axis=alt.Axis(tickMinStep=1)),
            y=alt.Y("value:Q", title=name, scale=alt.Scale(zero=False)),
        )
        zones = curve.mark_point(filled=True, size=26, opacity=1).encode(color=alt.Color("zone:N", scale=None))
        marks = [
            alt.Chart(alt.Data(values=[{"step": stop}])).mark_rule(color=AWAY, strokeDash=[4, 3]).encode(x="step:Q")
        ]
        layers = [curve.mark_line(color=FAINT), zones, *(marks if stop else [])]
        panels.append(alt.layer(*layers).properties(width=WIDTH / 2 - 70, height=130))
    return alt.concat(*panels, columns=2)


def _stop(arm: ArmFolder) -> int | None:
    stop = arm.outcome.guard_stop if arm.outcome is not None else None
    return stop.step if stop is not None else None


def forecast_chart(real: Sequence[tuple[float, float]]) -> Any | None:
    """(expected, real) movement of every question, nats per token."""
    alt = _altair()

    if not real:
        return None
    extrapolation = max(abs(v) for pair in real for v in pair) * 1.05 or 1.0
    scale = alt.Scale(domain=[-extrapolation, extrapolation])
    points = (
        alt.Chart(alt.Data(values=[{"expected": a, "real": b} for a, b in real]))
        .mark_point(color=TOWARDS, filled=True, opacity=0.8)
        .encode(
            x=alt.X("expected:Q", title="expected, nats per token", scale=scale),
            y=alt.Y("real:Q", title="real", scale=scale),
        )
    )
    same = (
        alt.Chart(
            alt.Data(values=[{"x": -extrapolation, "y": -extrapolation}, {"x": extrapolation, "y": extrapolation}])
        )
        .mark_line(color=FAINT)
        .encode(x="x:Q", y="y:Q")
    )
    return alt.layer(same, points).properties(width=260, height=260)
