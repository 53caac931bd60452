"""What ``localize`` found, on stdout."""

from __future__ import annotations

from rich.text import Text

from conviction.localization.records import Localization
from conviction.views.text import Format, out

__all__ = ["show_localization"]


def show_localization(found: Localization, form: Format) -> None:
    """The sentences; with json all of it."""
    if form == "json":
        out.file.write(found.model_dump_json(indent=1) + "\n")
        return
    traced = len({t.fact for t in found.traces})
    title = f"{found.source} in {found.model}: {traced} statements traced"
    if found.left_out:
        title += f", {len(found.left_out)} left out that the model does not know"
    parts = {"Found": found.found, "What it cannot mean": found.cannot_mean}
    if form == "md":
        lines = [
            f"**{title}**",
            *(f"\n{name}:\n\n" + "\n".join(f"- {s}" for s in said) for name, said in parts.items()),
        ]
        out.file.write("\n".join(lines) + "\n")
        return
    out.print(Text(title, style="bold"))
    for name, said in parts.items():
        out.print()
        out.print(Text(name, style="bold"))
        for sentence in said:
            out.print(Text(f"  {sentence}"))
