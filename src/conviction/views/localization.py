"""The result of ``localize``, on stdout."""

from __future__ import annotations

from conviction.core.wording import inline
from conviction.localization.records import Localization
from conviction.views.console import print_line, write, write_json
from conviction.views.text import Format

__all__ = ["show_localization"]


def show_localization(result: Localization, form: Format) -> None:
    """The sentences; with json all of it."""
    if form == "json":
        write_json(result.model_dump(mode="json"))
        return
    traced = len({t.fact for t in result.traces})
    title = f"{result.source} in {result.model}: {traced} statements traced"
    if result.left_out:
        title += f", {len(result.left_out)} left out that the model does not know"
    parts = {"Findings": result.findings, "What this does not show": result.cannot_mean}
    if form == "md":
        lines = [
            f"**{inline(title)}**",
            *(f"\n{name}:\n\n" + "\n".join(f"- {inline(s)}" for s in sentences) for name, sentences in parts.items()),
        ]
        write("\n".join(lines) + "\n")
        return
    print_line(title, "bold")
    for name, sentences in parts.items():
        print_line()
        print_line(name, "bold")
        for sentence in sentences:
            print_line(f"  {sentence}")
