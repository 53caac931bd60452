"""What all charts share: colours, sizes, and their ways out of altair."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from typing import Any

from conviction.core.storage import finite_or_null

WIDTH = 560


@dataclass(frozen=True)
class Palette:
    """Colours by what they mean."""

    ink: str
    faint: str
    towards: str
    away: str
    doubtful: str

    def of_zone(self, zone: str) -> str:
        """The colour of one of the guard's zones."""
        return {"healthy": self.towards, "warning": self.doubtful, "stop": self.away}.get(zone, self.faint)


ON_WHITE = Palette(ink="#1b1f24", faint="#c4c9d1", towards="#1b7a4b", away="#b3452c", doubtful="#b07a10")
PAGE = Palette(ink="#010101", faint="#020202", towards="#030303", away="#040404", doubtful="#050505")
"""Stand-ins that ``svg`` turns into names, to which the page's style gives its colours, also of dark mode and print."""


def altair() -> Any:
    """Untyped in part, and heavy: imported where a chart is made."""
    import altair as alt

    return alt


def styled(chart: Any, palette: Palette = ON_WHITE) -> Any:
    """The chart with the fonts, axes and margins that all have."""
    faint, ink = palette.faint, palette.ink
    axis = {"labelColor": ink, "titleColor": ink, "tickColor": faint, "domainColor": faint, "gridColor": faint}
    return (
        # Text is measured in one font and shown in the reader's, which may be a fifth wider.
        chart.configure(background="transparent", padding={"left": 48, "top": 5, "right": 16, "bottom": 5})
        .configure_axis(**axis, labelLimit=240, titleFontWeight="normal", gridOpacity=0.5)
        .configure_axisQuantitative(tickCount=6)
        .configure_view(stroke=None)
        .configure_title(color=ink, anchor="start", fontWeight="normal")
        .configure_legend(labelColor=ink, titleColor=ink)
        .configure_header(labelColor=ink, titleColor=ink)
    )


def svg(chart: Any, title: str) -> str:
    """A chart in the colours of ``PAGE`` as an SVG element that says what it shows to those who cannot see it."""
    import vl_convert

    drawn: str = vl_convert.vegalite_to_svg(_specification(chart))
    for name, stand_in in dataclasses.asdict(PAGE).items():  # not style="…": the page allows its own style alone
        drawn = re.sub(f'(fill|stroke)="{stand_in}"', rf'data-\1="{name}"', drawn)
    drawn = re.sub(r' width="[\d.]+" height="[\d.]+"', "", drawn, count=1)
    label = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return drawn.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


_NO_XML = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def _specification(chart: Any) -> str:
    """A chart as JSON, without the characters that XML cannot hold: the drawing library aborts the process at one."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {clean(name): clean(part) for name, part in value.items()}
        if isinstance(value, list):
            return [clean(part) for part in value]
        return _NO_XML.sub("\ufffd", value) if isinstance(value, str) else value

    return json.dumps(finite_or_null(clean(styled(chart, PAGE).to_dict())))


def png(chart: Any) -> bytes:
    """A chart in the colours of ``PAGE`` as a file of its own, dark on white."""
    import vl_convert

    text = _specification(chart)
    for stand_in, colour in zip(dataclasses.astuple(PAGE), dataclasses.astuple(ON_WHITE), strict=True):
        text = text.replace(stand_in, colour)
    image: bytes = vl_convert.vegalite_to_png(text, scale=2)
    return image
