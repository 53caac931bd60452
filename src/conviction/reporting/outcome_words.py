"""What an intervention did, in words: what the terminal, Markdown and the page say alike."""

from __future__ import annotations

from collections.abc import Iterator

from conviction.interventions.records import Outcome
from conviction.training.guard import summarize_warnings


def outcome_lines(outcome: Outcome) -> list[tuple[str, str]]:
    """(what, value): how the training went, what was measured, why it was stopped, notes."""
    notes = [("note", note) for note in outcome.notes]
    return [*_training(outcome), *outcome.report, *_stop(outcome), *notes]


def _training(outcome: Outcome) -> Iterator[tuple[str, str]]:
    run = outcome.training
    if run is None:
        return
    yield ("steps", f"{run.steps} of {run.total_steps}")
    stop = outcome.guard_stop
    if stop is not None:
        where = f"step {stop.restored_step}" if stop.restored_step else "before the first step"
        healthy = "" if outcome.settings.get("mode") == "none" else ", the last healthy"
        yield ("stopped after", f"step {stop.step}; the model is the one of {where}{healthy}")
    yield ("tokens", f"{run.tokens:,}")
    yield ("seconds", f"{outcome.seconds or 0:.0f} (checks by the guard included)")
    yield ("peak memory", f"{outcome.peak_mb} MB of this process, weights included")
    for limit in run.limits_passed:
        yield ("limit passed", limit)
    for warning in summarize_warnings(outcome.steps):
        yield (f"warned by {warning.sensor}", warning.text)


def _stop(outcome: Outcome) -> Iterator[tuple[str, str]]:
    if outcome.guard_stop is None:
        return
    for reason in outcome.guard_stop.reasons:
        yield ("reason", reason)
    if outcome.guard_stop.flip_margin:
        yield ("flip", outcome.guard_stop.flip_margin)
