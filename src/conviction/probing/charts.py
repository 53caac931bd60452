"""A scorecard as a picture."""

from __future__ import annotations

from typing import Any

from conviction.core.charts import ON_WHITE, WIDTH, Palette, altair
from conviction.probing.records import Scorecard


def bias_chart(card: Scorecard, palette: Palette = ON_WHITE) -> Any:
    """The gap of every proposition's first wording, nats per token; towards the target to the right."""
    alt = altair()
    asked = sorted((row for row in card.rows if row.role == "target"), key=lambda row: row.gap_nats)
    rows = [
        {
            "question": row.question,
            "gap": row.gap_nats,
            "side": palette.towards if row.gap_nats > 0 else palette.away,
        }
        for row in asked
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
