"""A study, and a search for settings, as pictures."""

from __future__ import annotations

from typing import Any

from conviction.core.charts import ON_WHITE, WIDTH, Palette, altair
from conviction.studies.records import Study
from conviction.studies.tuning_records import Tuning


def comparison_chart(study: Study, palette: Palette = ON_WHITE) -> Any | None:
    """What every arm moved, with its interval; None where none was judged."""
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
    alt = altair()
    order = [row["arm"] for row in rows]
    base = alt.Chart(alt.Data(values=rows)).encode(y=alt.Y("arm:N", sort=order, title=None))
    zero = alt.Chart(alt.Data(values=[{"x": 0}])).mark_rule(color=palette.faint).encode(x="x:Q")
    title = f"moved towards {study.target}, nats per token, with 95 % interval"
    interval = base.mark_rule(color=palette.ink, strokeWidth=1.5).encode(x=alt.X("low:Q", title=title), x2="high:Q")
    points = base.mark_point(color=palette.towards, filled=True, size=70, opacity=1).encode(x="moved:Q")
    return alt.layer(zero, interval, points).properties(width=WIDTH - 160, height=26 * len(rows))


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
