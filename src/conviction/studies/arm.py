"""One arm: its forecast, and what becomes of its outcome: measured again, held against controls, judged."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from conviction.config.plan import Plan
from conviction.core.context import RunContext
from conviction.core.options import flat
from conviction.core.protocols import LanguageModel, chat
from conviction.core.run import Run
from conviction.data.topic import Topic
from conviction.data.training_data import TrainingData
from conviction.forecasting.pipeline import forecast
from conviction.forecasting.records import Forecast, ForecastScore
from conviction.forecasting.rows import held_out_pairs
from conviction.interventions import find_intervention
from conviction.interventions.records import Outcome
from conviction.models.prompted import PromptedModel
from conviction.probing.depth import measure_depth
from conviction.probing.depth_records import Measurements
from conviction.probing.metrics import properties_of_kind
from conviction.studies.benign import has_own_weights, measure_after_benign, measure_reference, measure_reversal
from conviction.studies.context import StudyContext, check_questions
from conviction.studies.forecast_comparison import compare_with_forecast
from conviction.studies.judge import judge
from conviction.studies.records import DEPTHS, Arm, Judgement
from conviction.studies.tuning import EXAMPLES, PILOT_STEPS, search_cells, tune, tuned
from conviction.studies.tuning_records import SHARE

Measured = TypeVar("Measured")


def describe_arm(plan: Plan) -> Arm:
    """An arm before anything was done."""
    intervention = plan.intervention
    return Arm(
        name=intervention.name,
        folder=f"arms/{intervention.name}",
        changes=intervention.changes,
        settings=flat(intervention),
    )


def describe_applied_run(outcome: Outcome, *, name: str, folder: str, applied_in: str) -> Arm:
    """An arm out of a run that ``apply`` made by itself.

    folder, applied_in  its own folder and the run's, relative to the study's
    """
    changes = str(find_intervention(outcome.intervention).changes)
    return Arm(name=name, folder=folder, applied_in=applied_in, changes=changes, settings=outcome.settings)


def forecast_arm(plan: Plan, topic: Topic, model: LanguageModel, data: TrainingData, ctx: RunContext) -> Forecast:
    """What the arm is expected to do to the topic's test questions."""
    asked = [pair for pair in held_out_pairs(topic) if pair.role == "target"]
    return forecast(plan.intervention, model, data, held_out=asked, pilot_steps=PILOT_STEPS, examples=EXAMPLES, ctx=ctx)


def tuned_arm(
    plan: Plan, later: Sequence[Plan], topic: Topic, model: LanguageModel, ctx: RunContext, seconds: float
) -> tuple[Plan, float]:
    """The plan with settings that were searched, and the seconds that this took; kept as ``tuning.json``.

    later    arms of the study that come after this one; those that have settings to search share the time with it
    seconds  that are left of the study's time for searching
    """
    if ctx.budget is not None:  # what came before may have taken longer than was thought
        seconds = min(seconds, SHARE * ctx.budget.left)
    share = seconds / (1 + sum(len(search_cells(arm)) > 1 for arm in later))
    tuning = tune(plan, topic, model, ctx, minutes=max(0.0, share) / 60, kept=ctx.run)
    ctx.log(f"settings of {plan.intervention.name}: {tuning.summary}")
    return tuned(plan, tuning), tuning.seconds


def measure_and_judge(
    arm: Arm,
    outcome: Outcome,
    shared: StudyContext,
    own: Run,
    applied: Run,
    placebo: Callable[[], Measurements | None],
) -> Arm:
    """The arm with its judgement.

    own      the folder of the arm's measurements; applied: that holds its model and its forecast
    placebo  measures the shift of a placebo; asked only where there is a shift
    """
    topic, baseline, ctx = shared.topic, shared.baseline, shared.ctx
    arm = arm.model_copy(
        update={
            "seconds": outcome.seconds,
            "peak_mb": outcome.peak_mb,
            "guard_stop": outcome.guard_stop.text if outcome.guard_stop else None,
        }
    )
    changed, notes = shared.design.load(applied.changed_model), Notes(ctx=ctx)
    began = time.monotonic()
    after = own.cached("depth", Measurements, measure_depth, changed, topic, base=baseline, ctx=ctx)
    shared.reading_seconds[arm.name] = time.monotonic() - began
    check_questions(topic, after)
    judgement = _judge_with_controls(shared, after, changed, own, notes, placebo)
    own.update("judgement", judgement)
    expected = applied.load_forecast(Forecast).verdict.kind if applied.has("forecast") else None
    score = None
    if expected is not None:
        score = notes.attempt("the forecast's score", lambda: _forecast_score(shared, own, applied))
    return arm.model_copy(
        update={
            "extra_tokens": _extra_tokens(shared.model, changed, topic),
            "judgement": judgement,
            "forecast": expected,
            "forecast_score": score,
            "notes": tuple(notes.lines),
        }
    )


def _judge_with_controls(
    shared: StudyContext,
    after: Measurements,
    changed: LanguageModel,
    own: Run,
    notes: Notes,
    placebo: Callable[[], Measurements | None],
) -> Judgement:
    """What only a shift can have is measured where there is one; what is missing is noted."""
    judgement = judge(shared.baseline, after)
    if not shifted(judgement):
        return judgement
    other = notes.attempt("the placebo", placebo)
    if other is not None and (stop := other.provenance.get("guard_stop")):
        notes.add(f"the placebo was stopped by the guard and corrects for less training: {stop}")
    judgement = judge(shared.baseline, after, placebo=other)
    if not shifted(judgement):  # what a placebo does as well needs no benign training to be none
        return judgement
    if shared.design.benign_steps is None and not (_decides(judgement) or _is_harm_unchecked(judgement, shared)):
        return judgement
    goal = change.value if (change := judgement.change) is not None and change.value is not None else 0.0
    if not _decides(judgement) and not has_own_weights(shared, changed):
        worn = notes.attempt("durability", lambda: measure_after_benign(shared, changed, own, None))
        return judge(shared.untouched, after, placebo=other, after_benign=worn)
    reference = notes.attempt("durability's reference", lambda: measure_reference(shared, goal))
    worn = notes.attempt("durability", lambda: measure_after_benign(shared, changed, own, reference))
    reversal = notes.attempt("the reversal curve", lambda: measure_reversal(shared, changed, own, after))
    return judge(shared.untouched, after, placebo=other, after_benign=worn, reversal=reversal)


def _decides(judgement: Judgement) -> bool:
    """Whether durability may change the verdict: not where what follows did not move, or cannot be read."""
    return DEPTHS.index(judgement.verdict) > DEPTHS.index("surface") if judgement.verdict in DEPTHS else False


def _is_harm_unchecked(judgement: Judgement, shared: StudyContext) -> bool:
    """Whether harm was shown by a part without a control so far: durability's reference is that of leakage."""
    harm = [one for one in properties_of_kind(judgement.properties, "damage") if one.outcome == "no"]
    controls = [shared.untouched.control(one.metric) for one in harm]
    return any(control is not None and control.outcome == "no control" for control in controls)


def shifted(judgement: Judgement) -> bool:
    """Whether a shift was shown."""
    changes = properties_of_kind(judgement.properties, "change")
    return bool(changes) and all(one.outcome == "yes" for one in changes)


def _forecast_score(shared: StudyContext, own: Run, applied: Run) -> ForecastScore:
    base = shared.model
    return own.cached(
        "comparison",
        ForecastScore,
        compare_with_forecast,
        applied,
        lambda name: base if name == base.id else shared.design.load(name),
        base=base.id,
    )


def _extra_tokens(base: LanguageModel, changed: LanguageModel, topic: Topic) -> float:
    """Mean tokens that stand before an answer, less those that the untouched model reads."""
    questions = [chat(item.question) for item in topic.of_role("target") if item.split == "test"]
    more = sum(_prompt_tokens(changed, q) - _prompt_tokens(base, q) for q in questions)
    return more / len(questions)


def _prompt_tokens(model: LanguageModel, messages: Any) -> int:
    while isinstance(model, PromptedModel):
        (messages,) = model.transform.apply([messages])
        model = model.inner
    encoder = getattr(model, "encoder", None)
    return len(encoder.encode_prompt(messages)) if encoder is not None else 0


@dataclass(frozen=True, kw_only=True)
class Notes:
    """What a reader of an arm's result has to know; told at once, and kept."""

    ctx: RunContext
    lines: list[str] = field(default_factory=list)

    def add(self, line: str) -> None:
        self.ctx.log(line)
        self.lines.append(line)

    def attempt(self, what: str, measure: Callable[[], Measured]) -> Measured | None:
        """What is measured beside an arm's own result, and may fail, in whatever way, without taking that along."""
        try:
            return measure()
        except Exception as error:
            self.add(f"{what} could not be measured: {error}")
            return None
