"""The result of ``localize``, on stdout."""

from __future__ import annotations

from rich.text import Text

from conviction.localization.records import Localization
from conviction.views.text import Format, out

__all__ = ["show_localization"]


def show_localization(result: Localization, form: Format) -> None:
    """The sentences; with json all of it."""
    if form == "json":
        out.file.write(result.model_dump_json(indent=1) + "\n")
        return
    traced = len({t.fact for t in result.traces})
    title = f"{result.source} in {result.model}: {traced} statements traced"
    if result.left_out:
        title += f", {len(result.left_out)} left out that the model does not know"
    parts = {"Findings": result.findings, "What this does not show": result.cannot_mean}
    if form == "md":
        lines = [
            f"**{title}**",
            *(f"\n{name}:\n\n" + "\n".join(f"- {s}" for s in sentences) for name, sentences in parts.items()),
        ]
        out.file.write("\n".join(lines) + "\n")
        return
    out.print(Text(title, style="bold"))
    for name, sentences in parts.items():
        out.print()
        out.print(Text(name, style="bold"))
        for sentence in sentences:
            out.print(Text(f"  {sentence}"))
