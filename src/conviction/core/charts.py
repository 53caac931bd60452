"""What all charts share: colours, sizes, and their ways out of altair."""

from __future__ import annotations

import dataclasses
import json
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from conviction.core.storage import finite_or_null
from conviction.errors import ModelError

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


def converter() -> Any:
    """What draws charts: a browser's engine, which reserves 64 GB of addresses, though it uses 60 MB.

    Raises ModelError where this process may not have so many (``ulimit -v``): the engine would abort it.
    """
    with suppress(ImportError):  # Windows has no such limits
        import resource

        allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
        if not DRAWN and 0 <= allowed < ADDRESSES:
            raise ModelError(
                f"pictures cannot be drawn: this process may have {allowed >> 20:,} MB of addresses, and drawing "
                f"reserves {ADDRESSES >> 20:,}",
                hint="lift the limit (`ulimit -v unlimited`; 60 MB of memory are used) and give the same command, or "
                "`conviction report RUN`: what was measured is kept",
            )
    import vl_convert

    DRAWN.append(True)
    return vl_convert


ADDRESSES = 70 << 30
DRAWN: list[bool] = []
"""Whether anything was drawn: what is reserved by then is not asked for again."""


def svg(chart: Any, title: str) -> str:
    """A chart in the colours of ``PAGE`` as an SVG element that says what it shows to those who cannot see it."""
    drawn: str = converter().vegalite_to_svg(drawable(styled(chart, PAGE)))
    for name, stand_in in dataclasses.asdict(PAGE).items():  # not style="…": the page allows its own style alone
        drawn = re.sub(f'(fill|stroke)="{stand_in}"', rf'data-\1="{name}"', drawn)
    drawn = re.sub(r' width="[\d.]+" height="[\d.]+"', "", drawn, count=1)
    label = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return drawn.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


LONGEST = 300  # characters of a text in a chart
_NO_XML = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def drawable(chart: Any) -> str:
    """A chart as JSON, fit to be drawn.

    Characters that XML cannot hold make the drawing library abort the process, and it measures a text of 100,000
    characters for 20 seconds: they are replaced, and long texts end in an ellipsis.
    """

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {clean(name): clean(part) for name, part in value.items()}
        if isinstance(value, list):
            return [clean(part) for part in value]
        if not isinstance(value, str):
            return value
        return _NO_XML.sub("\ufffd", value if len(value) <= LONGEST else f"{value[: LONGEST - 1]}…")

    return json.dumps(finite_or_null(clean(chart.to_dict())))


def png(chart: Any) -> bytes:
    """A chart in the colours of ``PAGE`` as a file of its own, dark on white."""
    text = drawable(styled(chart, PAGE))
    for stand_in, colour in zip(dataclasses.astuple(PAGE), dataclasses.astuple(ON_WHITE), strict=True):
        text = text.replace(stand_in, colour)
    image: bytes = converter().vegalite_to_png(text, scale=2)
    return image
