"""What to do next, at the end of every result on stdout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conviction.views.text import Format, show_lines

if TYPE_CHECKING:
    from conviction.reporting.next_steps import Names, Result

__all__ = ["show_next_steps"]


def show_next_steps(result: Result, names: Names, form: Format, *, forecast: bool = False) -> None:
    """The sentences of ``next_steps``; nothing with json, which is the result alone."""
    from conviction.reporting.next_steps import next_steps

    if form == "json":
        return
    if steps := next_steps(result, names, forecast=forecast):
        show_lines("What to do next", [("", step) for step in steps], form)
