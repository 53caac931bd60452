"""A run folder as a page needs it: what is there, and what is there but cannot be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from conviction.core.finding import AuditReport
from conviction.core.forecast import Forecast
from conviction.core.run import SCHEMA
from conviction.core.scorecard import Sample, Scorecard
from conviction.core.study import Arm, Study
from conviction.errors import RunError

__all__ = ["ArmFolder", "RunFolder", "read_run"]

Found = TypeVar("Found", bound=BaseModel)


@dataclass(frozen=True)
class ArmFolder:
    """One intervention: its files, where there are any. written: condition and item → what the moved model wrote."""

    name: str
    arm: Arm | None
    forecast: Forecast | None
    steps: tuple[dict[str, Any], ...]
    applied: dict[str, Any] | None
    written: dict[str, Sample]
    gaps: dict[str, float]  # item → gap in the moved model, nats per token


@dataclass(frozen=True)
class RunFolder:
    """A probe, one intervention, or a study. damaged: (file, what is wrong with it)."""

    head: dict[str, Any]
    before: Scorecard | None
    findings: AuditReport | None
    study: Study | None
    arms: tuple[ArmFolder, ...]
    written: dict[str, Sample]
    damaged: tuple[tuple[str, str], ...]


@dataclass
class _Reader:
    root: Path
    damaged: list[tuple[str, str]] = field(default_factory=list)

    def text(self, place: str, parse: Callable[[str], Any]) -> Any | None:
        path = self.root / place
        if not path.exists():
            return None
        try:
            return parse(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            first = str(error).strip().splitlines() or [type(error).__name__]
            said = f"{error.error_count()} fields do not fit" if isinstance(error, ValidationError) else first[0]
            self.damaged.append((place, said))
            return None

    def part(self, place: str, kind: type[Found]) -> Found | None:
        found: Found | None = self.text(place, kind.model_validate_json)
        return found

    def lines(self, place: str) -> list[dict[str, Any]]:
        """JSON lines; a last line that was cut off by a kill is left out without a word."""

        def parse(text: str) -> list[dict[str, Any]]:
            *whole, last = text.split("\n")
            return [json.loads(line) for line in whole if line] + ([json.loads(last)] if last.endswith("}") else [])

        return self.text(place, parse) or []

    def samples(self, place: str) -> list[tuple[str, Sample]]:
        """(stage, sample)."""
        found = []
        for line in self.lines(place):
            try:
                stage = str(line.pop("stage", ""))
                found.append((stage, Sample.model_validate(line)))
            except ValueError:
                self.damaged.append((place, "a row is no sample"))
                break
        return found


def read_run(folder: Path) -> RunFolder:
    """Everything in a run folder that a page shows.

    Raises RunError for a folder that is no run, or one of another schema version.
    """
    head = _head(folder)
    reader = _Reader(folder)
    samples = reader.samples("samples.jsonl")
    before = reader.part("before.json", Scorecard)
    if before is not None:
        own = tuple(s for stage, s in samples if stage == "before")
        before = before.model_copy(update={"evidence": own})
    study = reader.part("study.json", Study)
    arms: list[ArmFolder] = []
    if study is not None:
        sides = (study.target, study.other)
        arms = [_arm(reader, arm.folder, arm.made_in or arm.folder, arm.name, arm, sides) for arm in study.arms]
    elif (folder / "applied.json").exists() or (folder / "steps.jsonl").exists() or (folder / "forecast.json").exists():
        arms = [_arm(reader, ".", ".", str(head.get("verb", "")).removeprefix("apply-"), None, None)]
    return RunFolder(
        head=head,
        before=before,
        findings=reader.part("findings.json", AuditReport),
        study=study,
        arms=tuple(arms),
        written=_written([s for stage, s in samples if stage == "depth"] or [s for _, s in samples]),
        damaged=tuple(reader.damaged),
    )


def _head(folder: Path) -> dict[str, Any]:
    try:
        head: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        version = head["schema_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{folder} holds no readable run.json", hint="give the folder that a command named with --run, or in runs/"
        ) from error
    if version != SCHEMA:
        raise RunError(
            f"{folder} was written with schema version {version}, this program reads {SCHEMA}",
            hint="make the page with the version of conviction that made the run, or make the run again",
        )
    return head


def _arm(
    reader: _Reader, place: str, made_in: str, name: str, arm: Arm | None, sides: tuple[str, str] | None
) -> ArmFolder:
    samples = [s for stage, s in reader.samples(f"{place}/samples.jsonl") if stage == "depth"] if place != "." else []
    return ArmFolder(
        name=name,
        arm=arm,
        forecast=reader.part(f"{made_in}/forecast.json", Forecast),
        steps=tuple(reader.lines(f"{made_in}/steps.jsonl")),
        applied=reader.text(f"{made_in}/applied.json", json.loads)
        or reader.text(f"{made_in}/training.json", json.loads),
        written=_written(samples),
        gaps=_gaps(samples, *sides) if sides is not None else {},
    )


def _gaps(samples: list[Sample], target: str, other: str) -> dict[str, float]:
    means = {
        (s.item, s.answer): sum(s.logprobs) / len(s.logprobs) for s in samples if s.condition == "plain" and s.logprobs
    }
    return {
        item: value - means[item, other]
        for (item, side), value in means.items()
        if side == target and (item, other) in means
    }


def _written(samples: list[Sample]) -> dict[str, Sample]:
    """Item → its greedy answer to a question of the topic."""
    return {s.item: s for s in samples if s.kind == "generation" and s.id.startswith("sampled/")}
