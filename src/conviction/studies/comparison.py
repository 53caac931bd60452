"""The table of a study from runs that ``apply`` made apart; they stay as they are."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from conviction.core.context import RunContext
from conviction.core.protocols import LanguageModel
from conviction.core.run import Run
from conviction.core.wording import printable
from conviction.data.topic import Topic
from conviction.errors import RunError
from conviction.interventions.records import Outcome
from conviction.probing.depth import measure_depth
from conviction.probing.depth_records import Measurements
from conviction.probing.records import Scorecard
from conviction.probing.scorecard import probe
from conviction.studies.arm import describe_applied_run, measure_and_judge
from conviction.studies.context import StudyContext, StudyDesign, study_config, summarize
from conviction.studies.records import Arm, Study


@dataclass(frozen=True, kw_only=True)
class AppliedRun:
    """A run folder with its outcome. digest: of that record; a run that was made again is another."""

    run: Run
    outcome: Outcome
    digest: str

    def __str__(self) -> str:
        return f"{self.run.folder.resolve()} {self.digest}"


def compare_runs(
    applied: Sequence[AppliedRun], topic: Topic, model: LanguageModel, run: Run, ctx: RunContext, design: StudyDesign
) -> Study:
    """Measure the untouched model and each run's, and judge the changes.

    Raises RunError for a run on another model.
    """
    results: list[Arm] = []
    run.check_config(study_config(topic, model, design, applied=[str(one) for one in applied]))
    before = run.cached("before", Scorecard, probe, model, topic, ctx=ctx)
    baseline = run.cached("depth", Measurements, measure_depth, model, topic, ctx=ctx)
    shared = StudyContext(topic=topic, model=model, before=before, baseline=baseline, design=design, ctx=ctx, run=run)
    for number, (name, one) in enumerate(zip(_names(applied), applied, strict=True), start=1):
        check_base(one, model)
        outcome = one.outcome
        if outcome.data.name != topic.name:
            ctx.log(f"note: {one.run.folder} learned from {outcome.data.name}, and is asked about {topic.name}")
        outcome.steps_in(one.run, ctx.log)
        own = run.child(f"{number}-{outcome.intervention}")
        own.copy_from(one.run, "forecast.json", "steps.jsonl", "outcome.json")
        applied_in = os.path.relpath(one.run.folder.resolve(), run.folder.resolve())
        arm = describe_applied_run(outcome, name=name, folder=f"arms/{own.folder.name}", applied_in=applied_in)
        with own.recording_failure(ctx.log) as attempt:
            arm = measure_and_judge(arm, outcome, shared, own, one.run, lambda: None)
        results.append(arm.model_copy(update={"failure": attempt.failure}))
    return run.update("study", summarize(shared, results))


def _names(applied: Sequence[AppliedRun]) -> list[str]:
    """The intervention's name; where two have the same, the folder's; where these are the same, too, its path."""
    for names in (
        [one.outcome.intervention for one in applied],
        [one.run.folder.resolve().name for one in applied],
    ):
        if len(set(names)) == len(names):
            return names
    return [str(one.run.folder) for one in applied]


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
    changed = applied.outcome.base.get("id")
    if changed != base.id or applied.outcome.has_other_weights_than(base):
        raise RunError(
            f"{applied.run.folder} changed {changed}, and {base.id} has other weights",
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
    if not isinstance(outcome.base.get("id"), str):
        raise RunError(
            f"{printable(folder / 'outcome.json')}: field 'base.id': it does not name the model",
            hint="give a folder that `conviction apply` wrote",
        )
    return AppliedRun(run=run, outcome=outcome, digest=hashlib.sha256(outcome.model_dump_json().encode()).hexdigest())
