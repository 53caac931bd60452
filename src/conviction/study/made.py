"""Runs that ``apply`` made by itself, to be compared like arms of a study."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conviction.core.protocols import LanguageModel
from conviction.core.storage import storage_errors
from conviction.errors import RunError

__all__ = ["Made", "check_base", "read_made"]


@dataclass(frozen=True, kw_only=True)
class Made:
    """What ``apply`` wrote of itself.

    model    id of the untouched one, weights: its fingerprint, in that dtype
    digest   of its record: a run that was made again is another
    seconds  of training; peak_mb: of the whole process
    """

    folder: Path
    digest: str
    intervention: str
    topic: str
    model: str
    weights: tuple[str | None, str | None]
    settings: Mapping[str, Any]
    trip: Any
    seconds: float | None
    peak_mb: int | None


def read_made(folders: Sequence[Path]) -> list[Made]:
    """Raises RunError for a folder in which nothing was applied to the end, one twice, or runs on different models."""
    found = [_read(folder) for folder in folders]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise RunError("a run is given twice", hint="give each folder once")
    for one in found:
        if one.model != found[0].model:
            raise RunError(
                f"{one.folder} changed {one.model}, {found[0].folder} {found[0].model}",
                hint="compare runs on one model",
            )
    return found


def check_base(made: Made, base: LanguageModel) -> None:
    """Raise RunError if the run changed other weights than these."""
    described = base.describe()
    fingerprint, dtype = made.weights
    other = fingerprint is not None and dtype == described.get("dtype") and fingerprint != described.get("fingerprint")
    if made.model != base.id or other:
        raise RunError(
            f"{made.folder} changed {made.model}, and {base.id} has other weights",
            hint="give --model the model that it was applied to",
        )


def _read(folder: Path) -> Made:
    for name in ("training.json", "applied.json"):
        path = folder / name
        if path.exists():
            with storage_errors(f"reading {path}"):
                text = path.read_text(encoding="utf-8")
            try:
                return _made(folder, text)
            except (ValueError, KeyError, TypeError) as error:
                raise RunError(f"{path} is damaged", hint="the run has to be made again") from error
    raise RunError(
        f"in {folder} nothing was applied to the end",
        hint="give folders that `conviction apply` wrote; a study has its table already",
    )


def _made(folder: Path, text: str) -> Made:
    record = json.loads(text)
    outcome = record.get("outcome", {})
    return Made(
        folder=folder,
        digest=hashlib.sha256(text.encode()).hexdigest(),
        intervention=record["intervention"],
        topic=record["material"]["name"],
        model=record["model"]["id"],
        weights=(record["model"].get("fingerprint"), record["model"].get("dtype")),
        settings=record["settings"],
        trip=outcome.get("trip") or record.get("trip"),
        seconds=outcome.get("seconds"),
        peak_mb=outcome.get("peak_mb"),
    )
