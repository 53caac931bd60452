"""Lines of a run folder's ``.jsonl`` files, as they were written or as a stranger left them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from conviction.core.gate import lines_of, parse_json, validate
from conviction.errors import RunError

__all__ = ["StagedRow", "StepLine", "is_step", "lost_rows", "named_rows", "parse_lines", "whole_lines"]


class _GuardPart(BaseModel):
    """What the guard said of a step, as far as it is read again."""

    model_config = ConfigDict(extra="allow")

    zone: str = ""
    violations: list[str] = Field(default=[])
    warnings: list[str] = Field(default=[])
    warned_by: list[str] = Field(default=[])


class StepLine(BaseModel):
    """One line of ``steps.jsonl``, as far as it is read again; what else a method writes is its own."""

    model_config = ConfigDict(extra="allow")

    step: int = Field(ge=0, le=10**12)
    guard: _GuardPart | None = None


class StagedRow(BaseModel):
    """A line of ``samples.jsonl``: a sample, and the record that it belongs to."""

    stage: str
    id: str


def is_step(line: str) -> bool:
    """Whether a line of ``steps.jsonl`` can be read."""
    try:
        parse_lines(line, "", "", StepLine)
    except RunError:
        return False
    return bool(line.strip())


def named_rows(value: Any) -> set[str]:
    """Ids of all samples that the numbers of a parsed record name."""
    names: set[str] = set()
    waiting = [value]
    while waiting:
        one = waiting.pop()
        for name, part in one.items() if isinstance(one, dict) else enumerate(one):
            if isinstance(part, dict | list):
                waiting.append(part)
                if name in ("samples", "foreign_samples"):
                    ids = part.values() if isinstance(part, dict) else part
                    names.update(one for one in ids if isinstance(one, str))
    return names


def lost_rows(folder: Path) -> list[Path]:
    """The ``samples.jsonl`` of a run, its arms and their seeds that are gone, though records name rows of them."""
    places = [folder, *sorted(folder.glob("arms/*")), *sorted(folder.glob("arms/*/seeds/*"))]
    measured = [one for one in places if any(os.path.lexists(one / f"{stage}.json") for stage in ("before", "depth"))]
    return [one / "samples.jsonl" for one in measured if not os.path.lexists(one / "samples.jsonl")]


def whole_lines(text: str) -> str:
    """The text without a last line that was cut off by a kill."""
    return text[: text.rfind("\n") + 1]


def parse_lines(text: str, where: str, hint: str, kind: type[BaseModel] | None = None) -> list[dict[str, Any]]:
    """The objects in the lines of a text, as they are, each checked by its schema if there is one.

    Raises RunError, naming file, line and field.
    """
    rows: list[dict[str, Any]] = []
    for number, line in lines_of(text):
        place = f"{where}:{number}"
        row = parse_json(line, place, RunError, hint=hint)
        if not isinstance(row, dict):
            raise RunError(f"{place}: a {type(row).__name__}, not an object with fields", hint=hint)
        if kind is not None:
            validate(kind, row, place, RunError, hint=hint)
        rows.append(row)
    return rows
