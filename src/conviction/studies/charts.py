"""A study as a picture."""

from __future__ import annotations

from typing import Any

from conviction.core.charts import ON_WHITE, WIDTH, Palette, altair
from conviction.studies.records import Study


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
