"""An audit as a picture."""

from __future__ import annotations

from typing import Any

from conviction.auditing.records import AuditReport
from conviction.core.charts import ON_WHITE, WIDTH, altair

COLOURS = {"error": ON_WHITE.away, "warning": ON_WHITE.doubtful, "note": ON_WHITE.faint}


def findings_chart(report: AuditReport) -> Any:
    """How many rows each finding concerns; one that concerns the set as a whole counts all usable rows."""
    alt = altair()
    rows = [
        {"finding": f"{f.code} {f.name}", "rows": len(f.rows) or report.usable, "level": f.level}
        for f in report.findings
    ]
    levels = alt.Scale(domain=list(COLOURS), range=list(COLOURS.values()))
    return (
        alt.Chart(alt.Data(values=rows))
        .mark_bar()
        .encode(
            x=alt.X("rows:Q", title=f"rows, of {report.usable} pairs", axis=alt.Axis(tickMinStep=1)),
            y=alt.Y("finding:N", sort=[row["finding"] for row in rows], title=None),
            color=alt.Color("level:N", scale=levels, title=None),
        )
        .properties(width=WIDTH - 220, height=20 * max(1, len(rows)))
    )
