"""What all charts share: colours, sizes, and their ways out of altair."""

from __future__ import annotations

import dataclasses
import json
import re
import textwrap
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from conviction.core.storage import finite_or_null
from conviction.errors import ModelError

WIDTH = 560
TEXT = 12  # pixels, of all text in a chart
PHONE = 358  # pixels, for a chart on a page that is 390 wide


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
    size = {"labelFontSize": TEXT, "titleFontSize": TEXT}
    return (
        # Text is measured in one font and shown in the reader's, which may be a fifth wider.
        chart.configure(background="transparent", aria=False, padding={"left": 48, "top": 5, "right": 16, "bottom": 5})
        .configure_axis(**axis, **size, labelLimit=240, titleFontWeight="normal", gridOpacity=0.5)
        .configure_axisQuantitative(tickCount=6)
        .configure_axisY(titlePadding=12)
        .configure_view(stroke=None)
        .configure_title(color=ink, anchor="start", fontWeight="normal")
        .configure_legend(labelColor=ink, titleColor=ink, **size, columnPadding=28)
        .configure_header(labelColor=ink, titleColor=ink, **size)
        .configure_text(fontSize=TEXT)
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


def svg(chart: Any, title: str, narrow: Any = None) -> str:
    """A chart in the colours of ``PAGE`` as SVG elements that say what they show to those who cannot see it.

    Panels of a chart are elements of their own, which stand beside each other where there is room. What is too wide for
    a phone is there twice, of the classes ``broad`` and ``narrow``. Each has the size at which its text has ``TEXT``.

    narrow  the chart as it is made for a phone; None: the same with a smaller plot
    """
    spec: dict[str, Any] = json.loads(drawable(styled(chart, PAGE)))
    shared = {name: part for name, part in spec.items() if name not in ("concat", "columns")}
    panels = [shared | panel for panel in spec.get("concat", [spec])]
    drawn = []
    for number, panel in enumerate(panels, start=1):
        label = title if len(panels) == 1 else f"{title}: panel {number} of {len(panels)}{_about(panel)}"
        broad = _element(_fitted(panel), label)
        if _width(broad) <= PHONE:
            drawn.append(broad)
        else:
            small = _narrowed(panel if narrow is None else json.loads(drawable(styled(narrow, PAGE))))
            drawn += [_with_class(broad, "broad"), _with_class(_element(small, label), "narrow")]
    return "".join(drawn)


def _element(spec: dict[str, Any], label: str) -> str:
    drawn: str = converter().vegalite_to_svg(json.dumps(spec))
    for name, stand_in in dataclasses.asdict(PAGE).items():  # not style="…": the page allows its own style alone
        drawn = re.sub(f'(fill|stroke)="{stand_in}"', rf'data-\1="{name}"', drawn)
    escaped = label.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return drawn.replace("<svg ", f'<svg role="img" aria-label="{escaped}" ', 1)


def _about(panel: Any) -> str:
    """What a panel's vertical axis shows."""
    titles = _titles(panel)
    return f", {titles[0]}" if titles else ""


def _titles(part: Any) -> list[str]:
    if isinstance(part, list):
        return [title for one in part for title in _titles(one)]
    if not isinstance(part, dict):
        return []
    y = part.get("encoding", {}).get("y", {})
    own = [y["title"]] if isinstance(y.get("title"), str) else []
    return own + _titles(part.get("layer", []))


def _has_names(panel: Any) -> bool:
    """Whether names stand beside the vertical axis."""
    return bool(panel.get("encoding", {}).get("y", {}).get("type") == "nominal")


def _width(element: str) -> float:
    named = re.search(r' width="([\d.]+)"', element)
    return float(named[1]) if named is not None else 0.0


def _with_class(element: str, name: str) -> str:
    return re.sub(r' class="[^"]*"', f' class="{name}"', element, count=1)


def _narrowed(panel: dict[str, Any]) -> dict[str, Any]:
    """The same chart for a phone: smaller plots, shorter labels, fewer ticks; text as large as before."""
    config = panel.get("config", {})
    axis = {**config.get("axis", {}), "labelLimit": LABEL}
    quantitative = {**config.get("axisQuantitative", {}), "tickCount": 4}
    legend = {**config.get("legend", {}), "columns": 1}
    room = {"left": 16, "top": 5, "right": 12, "bottom": 5}
    narrow = {**config, "axis": axis, "axisQuantitative": quantitative, "legend": legend, "padding": room}
    return _fitted({**_with_smaller_plots(panel), "config": narrow})


def _with_smaller_plots(panel: dict[str, Any]) -> dict[str, Any]:
    if "vconcat" in panel:
        return {**panel, "vconcat": [_with_smaller_plots(part) for part in panel["vconcat"]]}
    most = NARROW if _has_names(panel) else PHONE - 84  # numbers beside an axis take less room than names
    return {**panel, "width": min(panel["width"], most)} if isinstance(panel.get("width"), int | float) else panel


def _fitted(panel: dict[str, Any]) -> dict[str, Any]:
    """A chart whose titles stand on as many lines as their length needs."""
    if "vconcat" in panel:
        return {**panel, "vconcat": [_fitted(part) for part in panel["vconcat"]]}
    room = {axis: panel.get(side) for axis, side in (("x", "width"), ("y", "height"))}
    most = {axis: int(size / LETTER) + 4 for axis, size in room.items() if isinstance(size, int | float)}

    def fit(part: Any) -> Any:
        if isinstance(part, list):
            return [fit(one) for one in part]
        if not isinstance(part, dict):
            return part
        fitted = {name: fit(value) if name == "layer" else value for name, value in part.items()}
        if isinstance(encoding := part.get("encoding"), dict):
            fitted["encoding"] = {axis: _titled(channel, most.get(axis)) for axis, channel in encoding.items()}
        return fitted

    return dict(_titled(fit(panel), most.get("x")))


def _titled(channel: Any, most: int | None) -> Any:
    """A panel or one of its axes, its title in lines of so many letters."""
    title = channel.get("title") if isinstance(channel, dict) else None
    if most is None or not isinstance(title, str) or len(title) <= most:
        return channel
    return {**channel, "title": textwrap.wrap(title, max(most, 12))}


NARROW, LABEL = 176, 132  # pixels of a plot, of a label
LETTER = 6.5  # pixels, of a letter in a title


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
