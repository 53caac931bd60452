"""What an intervention did, on stdout."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

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
    body = [*_training(outcome), *map(list, outcome.report), *_stop(outcome), ["model", f"{folder}/model"]]
    body += [["note", note] for note in outcome.notes]
    if form == "md":
        show(outcome.verdict, ["what", "value"], body, form)
        return
    print_line(outcome.verdict, "bold")
    print_table(grid(body))


def _training(outcome: Outcome) -> Iterator[list[str]]:
    from conviction.training.guard import summarize_warnings

    run = outcome.training
    if run is None:
        return
    yield ["steps", f"{run.steps} of {run.total_steps}"]
    stop = outcome.guard_stop
    if stop is not None:
        where = f"step {stop.restored_step}" if stop.restored_step else "before the first step"
        healthy = "" if outcome.settings.get("mode") == "none" else ", the last healthy"
        yield ["stopped after", f"step {stop.step}; the model is the one of {where}{healthy}"]
    yield ["tokens", f"{run.tokens:,}"]
    yield ["seconds", f"{outcome.seconds or 0:.0f} (checks by the guard included)"]
    yield ["peak memory", f"{outcome.peak_mb} MB of this process, weights included"]
    for limit in run.limits_passed:
        yield ["limit passed", limit]
    for warning in summarize_warnings(outcome.steps):
        yield [f"warned by {warning.sensor}", warning.text]


def _stop(outcome: Outcome) -> Iterator[list[str]]:
    if outcome.guard_stop is None:
        return
    for reason in outcome.guard_stop.reasons:
        yield ["reason", reason]
    if outcome.guard_stop.flip_margin:
        yield ["flip", outcome.guard_stop.flip_margin]
