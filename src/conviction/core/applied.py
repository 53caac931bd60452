"""What an intervention that trains nothing gives back, and how it is recorded in a run folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conviction.core.material import Material
from conviction.core.protocols import LanguageModel
from conviction.core.settings import flat
from conviction.core.storage import write_atomic
from conviction.errors import InputError

__all__ = ["Applied", "record_applied", "untracked"]


@dataclass(frozen=True, kw_only=True)
class Applied:
    """The moved model and how it got there.

    verdict   one line; report: what to show, as (what, value)
    trip      why the guard kept what was done, or part of it, from the model; None: it did not
    evidence  what the numbers of the report come from, as JSON
    """

    model: LanguageModel
    settings: Mapping[str, Any]
    verdict: str
    report: tuple[tuple[str, str], ...] = ()
    trip: str | None = None
    evidence: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def record_applied(
    intervention: Any, applied: Applied, base: LanguageModel, material: Material, folder: Path | None
) -> Applied:
    """Write ``applied.json`` into the run folder, if there is one; returns what was applied, so that calls chain."""
    if folder is None:
        return applied
    record = {
        "intervention": intervention.name,
        "settings": {**flat(intervention), **applied.settings},
        "material": {"name": material.name, "sha256": material.digest},
        "model": base.describe(),
        "verdict": applied.verdict,
        "trip": applied.trip,
        "report": [list(line) for line in applied.report],
        "evidence": dict(applied.evidence),
    }
    write_atomic(folder / "applied.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return applied


def untracked(name: str, track: str | None) -> None:
    """Raise InputError for a tracker where there is no training to track."""
    if track is not None:
        raise InputError(f"'{name}' does not train: there is nothing to track", hint="leave --track out")
