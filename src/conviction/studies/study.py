"""The whole way, read this file first: probe, audit, baseline; then for each arm: forecast, apply under the guard,
measure again, judge; then further seeds of what was trained (``seeds.py``).

Where an arm shows a shift it is held against two controls before it is judged again: the same training on another
subject (``placebo.py``), and benign training on top (``benign.py``); both are in ``measure_and_judge`` (``arm.py``).

Every step writes its result into the run folder and is read back where it lies
there already, so that a study that was cut off goes on where it was. An arm's
model is always loaded from its folder before it is measured: a study that went
through in one go and one that was resumed measure the same thing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from conviction.auditing.linter import audit
from conviction.auditing.records import AuditReport
from conviction.config.plan import Plan
from conviction.core.context import Budget, RunContext
from conviction.core.protocols import LanguageModel
from conviction.core.run import Run
from conviction.core.wording import counted
from conviction.data.topic import Topic
from conviction.data.training_data import TrainingData
from conviction.interventions.application import carry_out
from conviction.interventions.records import Outcome
from conviction.probing.depth import measure_depth
from conviction.probing.depth_records import Measurements
from conviction.probing.records import Scorecard
from conviction.probing.scorecard import probe
from conviction.studies.arm import describe_arm, forecast_arm, measure_and_judge, tuned_arm
from conviction.studies.context import StudyContext, StudyDesign, study_config, summarize
from conviction.studies.placebo import measure_placebo
from conviction.studies.records import Arm, Study
from conviction.studies.seeds import repeat_arms
from conviction.studies.tuning_records import search_minutes


def study(
    topic: Topic, model: LanguageModel, arms: Sequence[Plan], run: Run, ctx: RunContext, design: StudyDesign
) -> Study:
    """Measure a model; then forecast, apply, measure again and judge each arm, the cheapest first.

    Raises RunError if a study with another design was begun in the folder.
    """
    started, data, results = time.perf_counter(), TrainingData.from_topic(topic), list[Arm]()
    ordered = sorted(arms, key=lambda plan: plan.intervention.cost_rank)
    search_seconds = 60 * search_minutes(design.tune_minutes, ctx.budget) if design.tune_minutes is not None else None
    plans: dict[str, Plan] = {}
    run.check_config(study_config(topic, model, design, data=data, arms=arms))
    before = run.cached("before", Scorecard, probe, model, topic, ctx=ctx)
    if data.pairs:
        report = run.cached("findings", AuditReport, audit, data, topic=topic)
        _log_audit(report, ctx)
    baseline = run.cached("depth", Measurements, measure_depth, model, topic, ctx=ctx)
    shared = StudyContext(
        topic=topic,
        model=model,
        before=before,
        baseline=baseline,
        design=design,
        ctx=replace(ctx, budget=None),  # an arm that was trained is judged to the end
        run=run,
    )

    def keep(arms: Sequence[Arm]) -> None:
        """The study as far as it has come, which others are told of."""
        kept = run.update("study", summarize(shared, arms))
        ctx.callbacks.on_study(kept.model_copy(update={"folder": run.folder}))

    if not run.has("study"):
        keep([])
    for number, given in enumerate(ordered, start=1):
        plan, arm, own = given, describe_arm(given), run.child(given.intervention.name)
        own_ctx = replace(ctx, run=own, guard=plan.guard)
        ctx.log(_progress(ordered, number, time.perf_counter() - started, ctx.budget))
        with own.recording_failure(ctx.log) as attempt:
            if not own.has("depth"):
                ctx.check_budget()  # raises; recorded as left out
            if search_seconds is not None:
                plan, used = tuned_arm(given, ordered[number:], topic, model, own_ctx, search_seconds)
                arm, search_seconds = describe_arm(plan), search_seconds - used
            plans[arm.name] = plan
            if plan.intervention.forecastable and not own.has("forecast"):
                own.save_forecast(forecast_arm(plan, topic, model, data, own_ctx))
            outcome = own.cached("outcome", Outcome, carry_out, plan.intervention, model, data, own_ctx)
            placebo = partial(measure_placebo, plan, outcome, data, shared, own)
            arm = measure_and_judge(arm, outcome, shared, own, own, placebo)
        results.append(arm.model_copy(update={"failure": attempt.failure}))
        keep(results)
    repeated = repeat_arms(results, plans, data, shared, run, ctx.budget, keep)
    return run.update("study", summarize(shared, repeated))


def _progress(arms: Sequence[Plan], number: int, seconds: float, budget: Budget | None) -> str:
    """What is begun, what comes after it, and the time."""
    now, *later = (plan.intervention.name for plan in arms[number - 1 :])
    then = f", then {', '.join(later)}" if later else ""
    whole = f"of {budget.seconds:.0f} seconds" if budget is not None else "seconds so far"
    return f"arm {number} of {len(arms)}: {now}{then} ({seconds:.0f} {whole})"


def _log_audit(report: AuditReport, ctx: RunContext) -> None:
    """What the audit came to, and which of its rules did not run: the study audits without the model."""
    not_run = "; ".join(f"{', '.join(codes)} ({why})" for why, codes in report.not_run.items())
    ctx.log(f"audit: {counted(len(report.findings), 'finding')}" + (f"; not run: {not_run}" if not_run else ""))
