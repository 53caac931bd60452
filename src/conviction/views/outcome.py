"""What an intervention did, on stdout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conviction.reporting.outcome_words import outcome_lines
from conviction.views.console import grid, print_line, print_table, write_json
from conviction.views.text import Format, show

if TYPE_CHECKING:
    from conviction.interventions.records import Outcome

__all__ = ["show_outcome"]


def show_outcome(outcome: Outcome, folder: str, form: Format) -> None:
    """The verdict, and under it what was done and what was measured of it."""
    if form == "json":
        write_json({**outcome.model_dump(mode="json"), "folder": folder})
        return
    body = [*map(list, outcome_lines(outcome)), ["model", f"{folder}/model"]]
    if form == "md":
        show(outcome.verdict, ["what", "value"], body, form)
        return
    print_line(outcome.verdict, "bold")
    print_table(grid(body))
