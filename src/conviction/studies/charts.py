"""A study, and a search for settings, as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from conviction.core.charts import ON_WHITE, PHONE, WIDTH, Palette, altair
from conviction.studies.pareto import pareto_front, position
from conviction.studies.records import Study
from conviction.studies.tuning_records import Tuning

ACROSS, UP = WIDTH - 120, 260  # of the main picture, pixels
NARROW = PHONE - 84  # the same on a phone
LETTER, LINE, POINT = 6.5, 14.0, 5.0  # of its labels, and half a point, pixels


def comparison_chart(study: Study, palette: Palette = ON_WHITE, *, width: float = ACROSS) -> Any | None:
    """The study's main picture: how far every arm moved the model, against what it kept of its right answers.

    Filled points are the Pareto front: no other arm beats them. None where no arm was judged.

    width  of the plot, pixels
    """
    rows = _points(study, palette, short=width < ACROSS)
    if not rows:
        return None
    alt = altair()
    low, high = (pick(0.0, pick(row[bound] for row in rows)) for pick, bound in ((min, "low"), (max, "high")))
    x_range = (low - 0.08 * (high - low or 1), high + 0.08 * (high - low or 1))
    y_range = (min(90.0, min(row["kept"] for row in rows) - 5), 104.0)
    across, up = alt.Scale(domain=x_range, nice=False), alt.Scale(domain=y_range, nice=False)
    x_title = f"moved towards {study.target}, nats per token, with 95 % interval"
    zero = alt.Chart(alt.Data(values=[{"x": 0}])).mark_rule(color=palette.faint).encode(x="x:Q")
    base = alt.Chart(alt.Data(values=rows)).encode(y=alt.Y("kept:Q", title="right answers kept, %", scale=up))
    interval = base.mark_rule(color=palette.faint, strokeWidth=1.5).encode(
        x=alt.X("low:Q", title=x_title, scale=across), x2="high:Q"
    )
    points = base.mark_point(size=80, opacity=1, filled=True, strokeWidth=1.5).encode(
        x="moved:Q", fill=alt.Fill("fill:N", scale=None), stroke=alt.Stroke("edge:N", scale=None)
    )
    labels = [
        alt.Chart(alt.Data(values=[row]))
        .mark_text(dx=dx, dy=dy, color=palette.ink)
        .encode(x="moved:Q", y="kept:Q", text="label:N")
        for row, (dx, dy) in zip(rows, _offsets(rows, x_range, y_range, width), strict=True)
    ]
    return alt.layer(zero, interval, points, *labels).properties(width=width, height=UP)


def _points(study: Study, palette: Palette, *, short: bool) -> list[dict[str, Any]]:
    """One row an arm that can be placed. short: its name alone, where there is no room for more."""
    front, rows = pareto_front(study.arms), []
    for arm in study.arms:
        place, change = position(arm), arm.judgement.change if arm.judgement is not None else None
        if place is None or change is None or arm.judgement is None:
            continue
        tokens = f", {place.tokens:+.0f} tokens" if round(place.tokens) else ""
        colour = palette.away if arm.judgement.verdict == "broken" else palette.towards
        rows.append(
            {
                "label": arm.name if short else f"{arm.name} ({arm.judgement.verdict}{tokens})",
                "moved": place.shift,
                "low": place.shift if change.low is None else change.low,
                "high": place.shift if change.high is None else change.high,
                "kept": 100 * place.kept,
                "fill": colour if arm.name in front else "transparent",
                "edge": colour,
            }
        )
    return rows


def _offsets(
    rows: Sequence[dict[str, Any]], x_range: tuple[float, float], y_range: tuple[float, float], width: float
) -> list[tuple[float, float]]:
    """(dx, dy) in pixels of every label from its point: over, under or beside it, inside the picture, and where none
    lies over another or over a point.
    """
    places = [
        (
            (row["moved"] - x_range[0]) / (x_range[1] - x_range[0]) * width,
            (y_range[1] - row["kept"]) / (y_range[1] - y_range[0]) * UP,
        )
        for row in rows
    ]
    placed, offsets = [(x, y, POINT) for x, y in places], list[tuple[float, float]]()
    for row, (x, y) in zip(rows, places, strict=True):
        half = LETTER * len(row["label"]) / 2
        centred, beside = min(max(x, half), width - half) - x, half + 2 * POINT
        near = [
            (centred, -LINE),
            (centred, LINE),
            *((dx, 0.0) for dx in (beside, -beside) if half <= x + dx <= width - half),
        ]
        far = [(centred, sign * LINE * step) for step in range(2, len(rows) + 2) for sign in (-1, 1)]

        def free(offset: tuple[float, float], x: float = x, y: float = y, half: float = half) -> bool:
            at, line = x + offset[0], y + offset[1]
            return all(abs(line - there) >= LINE or abs(at - middle) >= half + wide for middle, there, wide in placed)

        dx, dy = next(filter(free, [*near, *far]), near[0])
        placed.append((x + dx, y + dy, half))
        offsets.append((dx, dy))
    return offsets


def dose_chart(tuning: Tuning, palette: Palette = ON_WHITE) -> Any | None:
    """The shift at every dose of every trial that was trained; None where none was."""
    rows: list[dict[str, Any]] = [
        {
            "trial": trial.words,
            "step": dose.step,
            "shift": dose.shift_nats,
            "zone": palette.of_zone(dose.zone),
        }
        for trial in tuning.trials
        for dose in trial.doses
        if trial.steps
    ]
    if not rows:
        return None
    alt = altair()
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("step:Q", title="steps", axis=alt.Axis(tickMinStep=1)),
        y=alt.Y("shift:Q", title="shift on validation propositions, nats per token"),
    )
    lines = base.mark_line(color=palette.faint).encode(detail="trial:N")
    points = base.mark_point(filled=True, size=60, opacity=1).encode(color=alt.Color("zone:N", scale=None))
    ends = {row["trial"]: row for row in rows}  # the last dose of each
    names = alt.Chart(alt.Data(values=list(ends.values()))).mark_text(align="right", dy=-10, color=palette.ink)
    labels = names.encode(x="step:Q", y="shift:Q", text="trial:N")
    return alt.layer(lines, points, labels).properties(width=WIDTH - 160, height=220)
