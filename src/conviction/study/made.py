"""Runs that ``apply`` made by itself, to be compared like arms of a study."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conviction.core.storage import storage_errors
from conviction.errors import RunError

__all__ = ["Made", "read_made"]


@dataclass(frozen=True, kw_only=True)
class Made:
    """What ``apply`` wrote of itself. model: id of the untouched one; seconds and peak_mb: of training alone."""

    folder: Path
    intervention: str
    topic: str
    model: str
    settings: Mapping[str, Any]
    trip: Any
    seconds: float | None
    peak_mb: int | None


def read_made(folders: Sequence[Path]) -> list[Made]:
    """Raises RunError for a folder in which nothing was applied to the end, or runs on different models."""
    found = [_read(folder) for folder in folders]
    for one in found:
        if one.model != found[0].model:
            raise RunError(
                f"{one.folder} changed {one.model}, {found[0].folder} {found[0].model}",
                hint="compare runs on one model",
            )
    return found


def _read(folder: Path) -> Made:
    for name in ("training.json", "applied.json"):
        path = folder / name
        if path.exists():
            with storage_errors(f"reading {path}"):
                text = path.read_text(encoding="utf-8")
            try:
                return _made(folder, json.loads(text))
            except (ValueError, KeyError, TypeError) as error:
                raise RunError(f"{path} is damaged", hint="the run has to be made again") from error
    raise RunError(
        f"in {folder} nothing was applied to the end",
        hint="give folders that `conviction apply` wrote; a study has its table already",
    )


def _made(folder: Path, record: dict[str, Any]) -> Made:
    outcome = record.get("outcome", {})
    return Made(
        folder=folder,
        intervention=record["intervention"],
        topic=record["material"]["name"],
        model=record["model"]["id"],
        settings=record["settings"],
        trip=outcome.get("trip") or record.get("trip"),
        seconds=outcome.get("seconds"),
        peak_mb=outcome.get("peak_mb"),
    )
