"""The table of a study, on stdout."""

from __future__ import annotations

from rich.text import Text

from conviction.reporting.words import HEADER, LEGEND, cells, reasons
from conviction.studies.records import Study
from conviction.views.text import Format, grid, out, show, write_json

__all__ = ["show_study"]


def show_study(found: Study, form: Format) -> None:
    """One row an arm, and under it why."""
    if form == "json":
        write_json(found.model_dump(mode="json"))
        return
    show(f"{found.model} on '{found.topic}', towards {found.target}", HEADER, [cells(a) for a in found.arms], form)
    why = [(arm.name, line) for arm in found.arms for line in reasons(arm)]
    if form == "md":
        out.file.write(f"\nBefore: {found.verdict}\n\n" + "".join(f"- **{a}**: {b}\n" for a, b in why))
        return
    out.print(Text(f"\nBefore: {found.verdict}"))
    out.print(Text("\nWhy", style="bold"))
    out.print(grid(why))
    out.print(Text(f"\n{LEGEND}"))
