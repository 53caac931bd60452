"""Runs that ``apply`` made by itself, to be compared like arms of a study."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from conviction.core.protocols import LanguageModel
from conviction.core.run import Run
from conviction.errors import RunError
from conviction.interventions.records import Outcome

__all__ = ["AppliedRun", "check_base", "load_applied_runs"]


@dataclass(frozen=True, kw_only=True)
class AppliedRun:
    """A run folder with its outcome. digest: of that record; a run that was made again is another."""

    run: Run
    outcome: Outcome
    digest: str


def load_applied_runs(folders: Sequence[Path]) -> list[AppliedRun]:
    """Raises RunError for a folder in which nothing was applied to the end, one twice, or runs on different models."""
    runs = [_load(folder) for folder in folders]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise RunError("a run is given twice", hint="give each folder once")
    first = runs[0]
    for one in runs:
        if one.outcome.base.get("id") != first.outcome.base.get("id"):
            raise RunError(
                f"{one.run.folder} changed {one.outcome.base.get('id')}, "
                f"{first.run.folder} {first.outcome.base.get('id')}",
                hint="compare runs on one model",
            )
    return runs


def check_base(applied: AppliedRun, base: LanguageModel) -> None:
    """Raise RunError if the run changed other weights than these."""
    theirs, ours = applied.outcome.base, base.describe()
    known = theirs.get("fingerprint") is not None and theirs.get("dtype") == ours.get("dtype")
    if theirs.get("id") != base.id or (known and theirs.get("fingerprint") != ours.get("fingerprint")):
        raise RunError(
            f"{applied.run.folder} changed {theirs.get('id')}, and {base.id} has other weights",
            hint="give --model the model that it was applied to",
        )


def _load(folder: Path) -> AppliedRun:
    run = Run(folder)
    if not run.has("outcome"):
        raise RunError(
            f"in {folder} nothing was applied to the end",
            hint="give folders that `conviction apply` wrote; a study has its table already",
        )
    outcome = run.load("outcome", Outcome)
    return AppliedRun(run=run, outcome=outcome, digest=hashlib.sha256(outcome.model_dump_json().encode()).hexdigest())
