"""Heat maps of traces: a site's layer across, tokens down, colour for what restoring it brings back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conviction.core.charts import converter, drawable
from conviction.core.names import file_name
from conviction.core.storage import write_atomic
from conviction.localization.records import Localization, RoleMap, Trace

STEP = 9  # pixels a layer


def draw_all(result: Localization, folder: Path) -> list[Path]:
    """``average.svg`` and ``.png``, and one of each for every statement; the paths that were written."""
    pictures = {"average": heat_maps(f"{result.source}: mean of {result.maps[0].statements} statements", result.maps)}
    for fact in dict.fromkeys(t.fact for t in result.traces):
        traces = [t for t in result.traces if t.fact == fact]
        title = f"{''.join(traces[0].tokens)} → {traces[0].answer.strip()} ({traces[0].clean:.0%})"
        pictures[file_name("".join(c if c.isalnum() or c in "-_" else "_" for c in fact))] = heat_maps(title, traces)
    written = []
    for name, chart in pictures.items():
        spec = drawable(chart)
        svg, png = converter().vegalite_to_svg(spec), converter().vegalite_to_png(spec, scale=2)
        for ending, content in (("svg", svg), ("png", png)):
            path = folder / f"{name}.{ending}"
            write_atomic(path, content)
            written.append(path)
    return written


def heat_maps(title: str, maps: Sequence[Trace] | Sequence[RoleMap]) -> Any:
    """An altair chart: each kind beside its control, all on one scale of colour."""
    import altair as alt

    top = max(max(map(max, m.effects)) for m in maps)
    columns = []
    for control in (False, True):
        parts = [_one(alt, m, top) for m in maps if m.control == control]
        if parts:
            columns.append(alt.vconcat(*parts))
    return alt.hconcat(*columns).properties(title=title).configure_view(stroke=None)


def _one(alt: Any, result: Trace | RoleMap, top: float) -> Any:
    names = [
        f"{i:02d} {name.strip() or '␣'}"
        for i, name in enumerate(result.tokens if isinstance(result, Trace) else result.roles)
    ]
    marked = range(*result.corrupted) if isinstance(result, Trace) else ()
    names = [name + (" *" if i in marked else "") for i, name in enumerate(names)]
    rows = [
        {"site": name, "layer": layer, "effect": value}
        for name, line in zip(names, result.effects, strict=True)
        for layer, value in enumerate(line)
    ]
    where = "noise elsewhere (control)" if result.control else "noise on the subject"
    return (
        alt.Chart(alt.Data(values=rows), title=f"{result.kind}, {where}")
        .mark_rect()
        .encode(
            x=alt.X("layer:O", axis=alt.Axis(labelOverlap=True)),
            y=alt.Y("site:N", sort=names, title=None),
            color=alt.Color(
                "effect:Q",
                title="probability restored",
                scale=alt.Scale(scheme="viridis", domain=[0, max(top, 1e-6)], clamp=True),
            ),
        )
        .properties(width=STEP * len(result.effects[0]), height=14 * len(names))
    )
