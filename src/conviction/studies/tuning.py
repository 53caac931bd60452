"""Settings of an intervention, chosen on a part of the train split that it was not trained on: ``tune``.

Of a method that trains, all cells of its search space are forecast on one set of gradients, where it can be forecast;
the best of them are trained, and the view is read at several doses along each run. What is chosen is the dose with the
largest shift of those that the guard calls healthy, without a warning, and with a margin to its limits. Of methods that
do not train every cell is tried, and what the best of them breaks is read. Nothing of the test split is read.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from conviction.config.plan import Plan
from conviction.core.context import Budget, Callbacks, RunContext
from conviction.core.options import build, flat
from conviction.core.protocols import LanguageModel
from conviction.core.run import Run
from conviction.core.statistics import mean_interval
from conviction.core.wording import settings_in_words
from conviction.data.topic import Topic
from conviction.data.training_data import TrainingData
from conviction.data.validation import EVERY, FEWEST, validation_topic
from conviction.errors import BudgetSpent, ConvictionError
from conviction.forecasting.pipeline import forecast
from conviction.forecasting.rows import held_out_pairs
from conviction.probing.depth import measure_depth
from conviction.probing.depth_records import Measurements
from conviction.probing.metric import Kind
from conviction.probing.metrics import properties_of_kind
from conviction.probing.paired import differences
from conviction.studies.judge import judge
from conviction.studies.trial_order import next_trial
from conviction.studies.tuning_records import STAGE, Dose, Trial, Tuning
from conviction.training.monitor import dose_steps

DOSES = 6  # readings along a run
CONFIRMED = 2  # cells that are trained: the most promising by the forecast, or the first of the search space
# Of a forecast: a kit's training split makes a short run, which one at full length would take longer than.
PILOT_STEPS, EXAMPLES = 5, 16


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What the trials of one search share.

    plan      as it was given; ``data``: what trials are trained on
    topic     whose test split is the validation split
    untouched the untouched model's shift on it, and for methods without a guard what damage is judged by
    """

    plan: Plan
    model: LanguageModel
    topic: Topic
    data: TrainingData
    untouched: Measurements
    ctx: RunContext

    def intervention(self, options: Mapping[str, Any]) -> Any:
        """The plan's own with these fields, and of a trial's length."""
        return build(self.plan.intervention, {**trial_length(self.plan), **options})

    @property
    def guarded(self) -> RunContext:
        """Under the plan's guard, without a folder or a limit of time."""
        return replace(self.ctx, run=None, tracker=None, guard=self.plan.guard, budget=None)


def tune(
    plan: Plan,
    topic: Topic,
    model: LanguageModel,
    ctx: RunContext,
    *,
    minutes: float,
    kept: Run | None = None,
    cells: Sequence[Mapping[str, Any]] | None = None,
    confirmed: int = CONFIRMED,
) -> Tuning:
    """Search the settings of one intervention for so many minutes; what was chosen is in ``options``.

    cells      the settings that are searched; None: those of its search space
    confirmed  of which so many are trained, and more while none of them has a healthy dose

    Fields that the user gave are not searched. Trials are kept in ``kept`` as they are made: a search that was cut off
    goes on, and repeats none.
    """
    earlier = kept.load(STAGE, Tuning) if kept is not None and kept.has(STAGE) else None
    if earlier is not None and earlier.complete:
        return earlier
    small, cells = validation_topic(topic), search_cells(plan) if cells is None else cells
    if small is None or len(cells) < 2:
        why = f"the train split has fewer than {FEWEST} propositions" if small is None else "it has nothing to search"
        return _kept(kept, _unsearched(plan, small, f"not tuned: {why}"))
    used = earlier.seconds if earlier is not None else 0.0
    began, limit = time.monotonic() - used, Budget(60 * minutes - used)
    bench = _bench(plan, small, model, ctx)
    trials = list(earlier.trials) if earlier is not None else _planned(bench, cells)

    def record(*, complete: bool) -> Tuning:
        return _kept(kept, _conclude(bench, trials, time.monotonic() - began, complete))

    record(complete=False)
    while (number := next_trial(plan, trials, confirmed)) is not None:
        if limit.spent and not trials[number].doses:  # what the best of them breaks is read all the same
            break
        ctx.log(f"tuning {plan.intervention.name}: {trials[number].words}")
        trials[number] = _tried(bench, trials[number], limit)
        record(complete=False)
    return record(complete=True)


def tuned(plan: Plan, tuning: Tuning) -> Plan:
    """The plan with the settings that were chosen."""
    return replace(plan, intervention=build(plan.intervention, tuning.options)) if tuning.options else plan


def search_cells(plan: Plan) -> list[dict[str, Any]]:
    """Every combination of the intervention's search space, without the fields that the user gave."""
    axes = {name: values for name, values in plan.intervention.search.items() if name not in plan.given}
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def trial_length(plan: Plan) -> dict[str, Any]:
    """Fields of a trial: at a constant rate, so that every dose is a run of its own; not what the user gave."""
    if not plan.intervention.trains:
        return {}
    wanted: dict[str, Any] = {"schedule": "constant"}
    if (epochs := flat(plan.intervention)["epochs"]) is not None:
        # as many steps as a run at its defaults has on the whole split, of which a trial has two thirds
        wanted["epochs"] = math.ceil(epochs * EVERY / (EVERY - 1))
    return {name: value for name, value in wanted.items() if name not in plan.given}


def _bench(plan: Plan, small: Topic, model: LanguageModel, ctx: RunContext) -> Bench:
    return Bench(
        plan=plan,
        model=model,
        topic=small,
        data=TrainingData.from_topic(small),
        untouched=measure_depth(model, small, kinds=_kinds(plan), ctx=ctx),
        ctx=ctx,
    )


def _kinds(plan: Plan) -> list[Kind]:
    """A run's own guard reads what it may break; what has no guard is judged as in a study."""
    return ["change"] if plan.intervention.trains else ["change", "damage"]


def _planned(bench: Bench, cells: Sequence[Mapping[str, Any]]) -> list[Trial]:
    """All cells; forecast where that is possible, the most promising first."""
    intervention = bench.plan.intervention
    if not (intervention.trains and intervention.forecastable):
        return [Trial(options=dict(cell)) for cell in cells]
    bench.ctx.log(f"tuning {intervention.name}: {len(cells)} settings are forecast")
    began = time.monotonic()
    expected = forecast(
        bench.intervention(cells[0]),
        bench.model,
        bench.data,
        held_out=[pair for pair in held_out_pairs(bench.topic) if pair.role in ("target", "paraphrase")],
        sweep=cells,
        pilot_steps=PILOT_STEPS,
        examples=EXAMPLES,
        ctx=bench.guarded,
    )
    seconds = (time.monotonic() - began) / len(cells)
    trials = [
        Trial(
            options=dict(cell),
            forecast_nats=point.reachable_nats,
            forecast_stop=point.predicted_stop.step if point.predicted_stop is not None else None,
            seconds=seconds,
            forecast_seconds=seconds,
        )
        for cell, point in zip(cells, expected.settings, strict=True)
    ]
    return sorted(trials, key=lambda trial: -math.inf if trial.forecast_nats is None else -trial.forecast_nats)


def _tried(bench: Bench, trial: Trial, limit: Budget) -> Trial:
    """The trial with what a real run at its settings did. A failure is a result, too: others may do.

    limit  after which no step is begun: what was read until then counts
    """
    began, readings = time.monotonic(), _Readings(bench)
    intervention = bench.intervention(trial.options)
    ctx = replace(bench.guarded, callbacks=readings.callbacks(), budget=limit, doses=DOSES)
    stop = failure = None
    try:
        outcome = intervention.apply(bench.model, bench.data, ctx)
        stop = outcome.guard_stop.text if outcome.guard_stop is not None else None
        if not intervention.trains:
            readings.read_changed(outcome.changed, damage=trial.made)
    except BudgetSpent:
        failure = "the time for the search was over before its last step"
    except ConvictionError as error:
        failure = error.message
    return trial.model_copy(
        update={
            "doses": tuple(readings.doses),
            "steps": readings.total,
            "guard_stop": stop,
            "failure": failure,
            "seconds": trial.seconds + time.monotonic() - began,
        }
    )


@dataclass
class _Readings:
    """What is read along a run.

    guard        its record of the last step; limits_used: by each sensor's latest reading
    """

    bench: Bench
    doses: list[Dose] = field(default_factory=list)
    total: int | None = None
    guard: Mapping[str, Any] = field(default_factory=dict)
    limits_used: dict[str, float] = field(default_factory=dict)

    def callbacks(self) -> Callbacks:
        """Those of the search, and a reading at every dose."""
        return replace(self.bench.ctx.callbacks, on_step=self._on_step, on_model=self._on_model)

    def _on_step(self, record: Mapping[str, Any], total: int) -> None:
        self.guard = record["guard"]
        self.limits_used |= self.guard["limits_used"]
        self.bench.ctx.on_step(record, total)

    def _on_model(self, step: int, total: int, model: LanguageModel) -> None:
        self.total = total
        if step in dose_steps(total, DOSES):
            after = measure_depth(model, self.bench.topic, base=self.bench.untouched, kinds=["change"])
            warnings = (*self.guard["violations"], *self.guard["warnings"])
            self._add(step, after, self.guard["zone"], tuple(dict.fromkeys(warnings)))

    def read_changed(self, model: LanguageModel, *, damage: bool) -> None:
        """Of what does not train: the changed model alone, judged as in a study; what it breaks, if that is wanted."""
        kinds: list[Kind] = ["change", "damage"] if damage else ["change"]
        after = measure_depth(model, self.bench.topic, base=self.bench.untouched, kinds=kinds)
        judged = judge(self.bench.untouched, after, kinds=kinds).properties
        harm = [p.text for p in properties_of_kind(judged, "damage") if p.outcome == "no"]
        self._add(0, after, "warning" if harm else "healthy", tuple(harm), damage_read=damage)

    def _add(
        self, step: int, after: Measurements, zone: Any, warnings: tuple[str, ...], *, damage_read: bool = True
    ) -> None:
        shift = mean_interval(differences(self.bench.untouched, after, "shift"))
        self.doses.append(
            Dose(
                step=step,
                shift_nats=shift.mean,
                low=shift.low,
                high=shift.high,
                zone=zone,
                warnings=warnings,
                limits_used=dict(self.limits_used),
                damage_read=damage_read,
            )
        )


def _conclude(bench: Bench, trials: Sequence[Trial], seconds: float, complete: bool) -> Tuning:
    """The record of the search as far as it has come."""
    best = _best(trials)
    options: dict[str, Any] = {}
    if complete and best is not None and (dose := trials[best].best) is not None:
        options = {**trial_length(bench.plan), **trials[best].options, **_steps_of(bench, trials[best], dose)}
    judged = tuple(
        trial.model_copy(update={"chosen": number == best, "reason": _reason(trial, number == best)})
        for number, trial in enumerate(trials)
    )
    return Tuning(
        intervention=bench.plan.intervention.name,
        fitted=_propositions(bench.topic, "train"),
        asked=_propositions(bench.topic, "test"),
        trials=judged,
        options=options,
        summary=_summary(judged, best, options) if complete else "the search was not finished",
        seconds=seconds,
        complete=complete,
    )


def _best(trials: Sequence[Trial]) -> int | None:
    """The trial with the largest healthy shift towards the target; None: there is none."""
    shifts = {n: trial.best.shift_nats for n, trial in enumerate(trials) if trial.best is not None}
    best = max(shifts, key=lambda n: shifts[n], default=None)
    return best if best is not None and shifts[best] > 0 else None


def _steps_of(bench: Bench, trial: Trial, dose: Dose) -> dict[str, Any]:
    """The dose in steps, the same on the whole train split: how far weights move goes by rate and steps, not epochs."""
    return {} if not trial.steps or "max_steps" in bench.plan.given else {"max_steps": dose.step}


def _reason(trial: Trial, chosen: bool) -> str:
    best = trial.best
    if not trial.made:
        return "not tried: others are expected to move more, or no time was left"
    if trial.failure is not None and best is None:
        return f"failed: {trial.failure}"
    if best is None:
        first = next((dose.why_not for dose in trial.doses), trial.guard_stop or "")
        if any(not dose.damage_read for dose in trial.doses):
            return first
        return f"no healthy dose: {first}"
    reached = f"{best.shift_nats:+.2f} nats per token" + (
        f" after {best.step} of {trial.steps} steps" if trial.steps else ""
    )
    return f"the largest healthy shift: {reached}" if chosen else f"less: {reached}"


def _summary(trials: Sequence[Trial], best: int | None, options: Mapping[str, Any]) -> str:
    tried = [trial for trial in trials if trial.made]
    if not tried:
        return "not tuned: there was no time for a trial; settings stay as they are"
    if best is None:
        limits = "; ".join(dict.fromkeys(trial.reason for trial in tried))
        return f"no settings with a healthy shift towards the target were seen in {len(tried)} trials ({limits})"
    return f"{settings_in_words(options)}: of {len(trials)} settings, {len(tried)} tried, {trials[best].reason}"


def _propositions(topic: Topic, split: str) -> int:
    return len({item.proposition for item in topic.of_role("target") if item.split == split})


def _unsearched(plan: Plan, small: Topic | None, summary: str) -> Tuning:
    return Tuning(
        intervention=plan.intervention.name,
        fitted=0 if small is None else _propositions(small, "train"),
        asked=0 if small is None else _propositions(small, "test"),
        trials=(),
        options={},
        summary=summary,
        seconds=0.0,
    )


def _kept(run: Run | None, tuning: Tuning) -> Tuning:
    return tuning if run is None else run.update(STAGE, tuning)
