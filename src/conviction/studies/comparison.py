"""The table of a study from runs that ``apply`` made apart; they stay as they are."""

from __future__ import annotations

import os
from collections.abc import Sequence

from conviction.core.context import RunContext
from conviction.core.protocols import LanguageModel
from conviction.core.run import Run
from conviction.data.topic import Topic
from conviction.probing.depth import measure_depth
from conviction.probing.depth_records import Measurements
from conviction.probing.records import Scorecard
from conviction.probing.scorecard import probe
from conviction.studies.applied_runs import AppliedRun, check_base
from conviction.studies.arm import describe_applied_run, judge_arm
from conviction.studies.context import StudyContext, StudyDesign, check_questions, study_config, summarize
from conviction.studies.records import Study

__all__ = ["compare_runs"]


def compare_runs(
    applied: Sequence[AppliedRun], topic: Topic, model: LanguageModel, run: Run, ctx: RunContext, design: StudyDesign
) -> Study:
    """Measure the untouched model and each run's, and judge the changes.

    Raises RunError for a run on another model.
    """
    results = []
    with run.lock(config=study_config(topic, model, design, applied=applied)):
        before = run.cached("before", Scorecard, probe, model, topic, ctx=ctx)
        baseline = run.cached("depth", Measurements, measure_depth, model, topic, ctx=ctx)
        check_questions(topic, before, baseline)
        shared = StudyContext(topic=topic, model=model, baseline=baseline, design=design, ctx=ctx)
        for number, one in enumerate(applied, start=1):
            check_base(one, model)
            outcome = one.outcome
            if outcome.data.name != topic.name:
                ctx.log(f"note: {one.run.folder} learned from {outcome.data.name}, and is asked about {topic.name}")
            own = Run(run.folder / f"arms/{number}-{outcome.intervention}", resumed=True)
            same = [other.run.folder for other in applied if other.outcome.intervention == outcome.intervention]
            place = f" {same.index(one.run.folder) + 1}" if len(same) > 1 else ""
            applied_in = os.path.relpath(one.run.folder.resolve(), run.folder.resolve())
            arm = describe_applied_run(
                outcome, name=f"{outcome.intervention}{place}", folder=f"arms/{own.folder.name}", applied_in=applied_in
            )
            with own.recording_failure(ctx.log) as attempt:
                arm = judge_arm(arm, outcome, shared, own, one.run, lambda: None)
            results.append(arm.model_copy(update={"failure": attempt.failure}))
        return run.update("study", summarize(shared, before, results))
