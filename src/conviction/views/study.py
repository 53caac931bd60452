"""The table of a study, on stdout."""

from __future__ import annotations

from rich.text import Text

from conviction.reporting.words import cells, header, legend, reasons
from conviction.studies.records import Study
from conviction.views.text import Format, grid, out, show, write_json

__all__ = ["show_study"]


def show_study(study: Study, form: Format) -> None:
    """One row an arm, and under it why."""
    if form == "json":
        write_json(study.model_dump(mode="json"))
        return
    title = f"{study.model} on '{study.topic}', towards {study.target}"
    show(title, header(), [cells(arm) for arm in study.arms], form)
    why = [(arm.name, line) for arm in study.arms for line in reasons(arm)]
    if form == "md":
        out.file.write(f"\nBefore: {study.verdict}\n\n" + "".join(f"- **{a}**: {b}\n" for a, b in why))
        return
    out.print(Text(f"\nBefore: {study.verdict}"))
    out.print(Text("\nWhy", style="bold"))
    out.print(grid(why))
    out.print(Text(f"\n{legend()}"))
