"""A study, and a search for settings, as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from conviction.core.charts import ON_WHITE, PHONE, WIDTH, Palette, altair
from conviction.studies.pareto import pareto_front, position
from conviction.studies.records import Study
from conviction.studies.tuning_records import Dose, Trial, Tuning

ACROSS, UP = WIDTH - 120, 260  # of the main picture, pixels
NARROW = PHONE - 84  # the same on a phone
HARMS = {
    "facts_drop": "facts",
    "own_words": "its own answers",
    "pluralism": "what either side holds",
    "neutral_drop": "neutral text",
}
DASHES = {
    "facts": [6, 3],
    "its own answers": [10, 4],
    "what either side holds": [2, 2],
    "neutral text": [8, 3, 2, 3],
    "nearest": [1, 0],
}
MOST = 1.5  # of a limit: what is further beyond it is drawn there
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
    """Dose and response: the shift at every dose of every trial that was trained, what of the guard's limits the
    trial that was chosen, or else the last one, used meanwhile, and the largest healthy shift by what else was searched
    besides the rate. None where none was trained.
    """
    trained = [trial for trial in tuning.trials if trial.doses and trial.steps]
    if not trained:
        return None
    alt = altair()
    shown = next((trial for trial in trained if trial.chosen), trained[-1])
    limits = _limits_panel(shown, palette)
    walk = alt.vconcat(_shift_panel(trained, palette), *([limits] if limits is not None else []), spacing=24)
    settings = [_setting_panel(trained, name, palette) for name in _varied(trained)]
    return alt.vconcat(walk.resolve_scale(x="shared"), *settings, spacing=24) if settings else walk


def _shift_panel(trained: Sequence[Trial], palette: Palette) -> Any:
    alt, dots, ends = altair(), list[dict[str, Any]](), list[dict[str, Any]]()
    for trial in trained:
        rows = [
            {"trial": trial.words, "step": d.step, "shift": d.shift_nats, "colour": _dose_colour(d, palette)}
            for d in trial.doses
        ]
        dots += rows
        ends.append(rows[-1] | {"trial": f"{trial.words}{' (chosen)' if trial.chosen else ''}"})
    x, y = (
        alt.X("step:Q", title="steps", axis=alt.Axis(tickMinStep=1), scale=alt.Scale(domainMin=0)),
        alt.Y("shift:Q", title="shift, nats per token"),
    )
    base = alt.Chart(alt.Data(values=dots)).encode(x=x, y=y)
    lines = base.mark_line(color=palette.faint).encode(detail="trial:N")
    points = base.mark_point(filled=True, size=60, opacity=1).encode(color=alt.Color("colour:N", scale=None))
    names = alt.Chart(alt.Data(values=ends)).mark_text(align="right", dy=-10, color=palette.ink)
    labels = names.encode(x="step:Q", y="shift:Q", text="trial:N")
    return alt.layer(lines, points, labels).properties(width=ACROSS, height=200)


def _varied(trained: Sequence[Trial]) -> list[str]:
    """Numeric settings besides the learning rate that differ between trials with a healthy dose."""
    values: dict[str, set[float]] = {}
    for trial in trained:
        for name, value in trial.options.items() if trial.best is not None else ():
            if name != "learning_rate" and isinstance(value, int | float):
                values.setdefault(name, set()).add(value)
    return [name for name, seen in values.items() if len(seen) > 1]


def _setting_panel(trained: Sequence[Trial], name: str, palette: Palette) -> Any:
    """Largest healthy shift of every trial, with its interval, by one setting; trials of one rate are joined."""
    alt = altair()
    rows = [
        {
            "value": trial.options[name],
            "shift": best.shift_nats,
            "low": best.low,
            "high": best.high,
            "rate": trial.options.get("learning_rate", 0.0),
            "colour": palette.towards if trial.chosen else palette.faint,
        }
        for trial in trained
        if (best := trial.best) is not None and name in trial.options
    ]
    x = alt.X("value:Q", title=name, scale=alt.Scale(zero=False, padding=20), axis=alt.Axis(tickMinStep=0.1))
    base = alt.Chart(alt.Data(values=rows)).encode(x=x, detail="rate:N")
    shift = alt.Y("shift:Q", title="largest healthy shift")
    lines = base.mark_line(color=palette.faint).encode(y=shift)
    spans = base.mark_rule(color=palette.faint).encode(y=alt.Y("low:Q", title="largest healthy shift"), y2="high:Q")
    points = base.mark_point(filled=True, size=60, opacity=1).encode(y=shift, color=alt.Color("colour:N", scale=None))
    return alt.layer(lines, spans, points).properties(width=ACROSS, height=130, title=f"by {name}")


def _dose_colour(dose: Dose, palette: Palette) -> str:
    near = dose.zone == "healthy" and not dose.healthy
    return palette.doubtful if near else palette.of_zone(dose.zone)


def _limits_panel(trial: Trial, palette: Palette) -> Any | None:
    """The part that is used of the limits on each of ``HARMS``, and of the nearest."""
    rows = [
        {"limit": what, "step": dose.step, "used": 100 * min(share, MOST)}
        for dose in trial.doses
        for what, share in _harms(dose).items()
    ]
    if not rows:
        return None
    alt = altair()
    y = alt.Y("used:Q", title="of the guard's limit, %", scale=alt.Scale(domainMin=0))
    base = alt.Chart(alt.Data(values=rows)).encode(x=alt.X("step:Q", title="steps"), y=y)
    styles = {name: style for name, style in DASHES.items() if any(row["limit"] == name for row in rows)}
    dash = alt.StrokeDash(
        "limit:N",
        title=None,
        scale=alt.Scale(domain=list(styles), range=list(styles.values())),
        legend=alt.Legend(orient="bottom", symbolType="stroke", symbolSize=500, symbolStrokeColor=palette.ink),
    )
    limit = alt.Chart(alt.Data(values=[{"y": 100}])).mark_rule(color=palette.away).encode(y="y:Q")
    lines = base.mark_line(color=palette.ink).encode(strokeDash=dash)
    title = f"{trial.words}: how near to the limits of the guard"
    return alt.layer(limit, lines).properties(width=ACROSS, height=130, title=title)


def _harms(dose: Dose) -> dict[str, float]:
    used = dose.limits_used
    known = {HARMS[name]: used[name] for name in HARMS if name in used}
    return known | ({"nearest": max(used.values())} if used else {})
