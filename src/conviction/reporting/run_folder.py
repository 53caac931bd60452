"""A run folder as a page needs it: what is there, and what is there but cannot be read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from conviction.auditing.records import AuditReport
from conviction.core.names import inside
from conviction.core.run import Run
from conviction.errors import RunError
from conviction.forecasting.records import Forecast
from conviction.interventions.records import Outcome
from conviction.probing.records import Sample, Scorecard
from conviction.studies.records import Arm, Study
from conviction.studies.tuning_records import STAGE, Tuning


@dataclass(frozen=True, kw_only=True)
class ArmFolder:
    """One intervention: its files, where there are any.

    tuning   how its settings were searched, if they were
    written  condition and item → what the changed model wrote; gaps: item → gap in it, nats per token
    """

    name: str
    forecast: Forecast | None
    steps: tuple[dict[str, Any], ...]
    outcome: Outcome | None
    arm: Arm | None = None
    tuning: Tuning | None = None
    written: Mapping[str, Sample] = field(default_factory=dict)
    gaps: Mapping[str, float] = field(default_factory=dict)


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


def read_run(folder: Path) -> RunFolder:
    """Everything in a run folder that a page shows.

    Raises RunError for a folder that is no run, or one of another schema version.
    """
    run = Run(folder)
    head = run.head
    samples = run.samples_if_sound(Sample)
    before = run.load_if_sound("before", Scorecard)
    study = run.load_if_sound("study", Study)
    arms: list[ArmFolder] = []
    if study is not None:
        sides = (study.target, study.other)
        arms = [_arm(run, arm, sides) for arm in study.arms]
    elif run.has("outcome") or run.has("forecast") or os.path.lexists(folder / "steps.jsonl"):
        arms = [_applied(run, str(head.get("verb", "")).removeprefix("apply-").removeprefix("forecast-"))]
    return RunFolder(
        head=head,
        before=before,
        findings=run.load_if_sound("findings", AuditReport),
        study=study,
        arms=tuple(arms),
        written=_written([s for stage, s in samples if stage == "depth"] or [s for _, s in samples]),
        damaged=tuple((os.path.relpath(path, folder), wrong) for path, wrong in run.damaged),
    )


def _arm(run: Run, arm: Arm, sides: tuple[str, str]) -> ArmFolder:
    """What lies in the arm's own folder; one that the study puts elsewhere is not read."""
    try:
        own = Run(inside(run.folder, arm.folder, f"the folder of {arm.name}", RunError), damaged=run.damaged)
    except RunError as error:
        run.damaged.append((str(run.folder / "study.json"), error.message))
        return ArmFolder(name=arm.name, forecast=None, steps=(), outcome=None, arm=arm)
    if arm.applied_in is not None and not own.has("outcome"):
        elsewhere = f"what {arm.name} was applied with lies in {arm.applied_in}, outside of this folder: it is not read"
        run.damaged.append((str(run.folder / "study.json"), elsewhere))
    samples = [s for stage, s in own.samples_if_sound(Sample) if stage == "depth"]
    return replace(_applied(own, arm.name), arm=arm, written=_written(samples), gaps=_gaps(samples, *sides))


def _applied(run: Run, name: str) -> ArmFolder:
    outcome = run.load_if_sound("outcome", Outcome)
    return ArmFolder(
        name=name,
        forecast=run.load_if_sound("forecast", Forecast),
        steps=tuple(run.steps_if_sound()) if outcome is None else outcome.steps_in(run),
        outcome=outcome,
        tuning=run.load_if_sound(STAGE, Tuning),
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
