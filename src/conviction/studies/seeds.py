"""Other seeds of what was trained: the order of the data, the start of the adapter and dropout are drawn anew.

They begin once the first seed of every arm was judged, and all second seeds come before any third: a budget that ends
leaves a study that is worth no less than one with a single seed. Settings are those of the first seed. Of a further
seed the shift and what may be harmed are read, and its placebo is trained where there is a shift; propagation,
robustness, durability and consistency are the first seed's. How seeds make one judgement is in ``judge.py``.

Arms that do not train are applied once: steering, editing, retrieval and a prompt draw nothing by a seed of theirs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from conviction.config.plan import Plan
from conviction.core.context import Budget
from conviction.core.options import build, flat
from conviction.core.run import Failure, Run
from conviction.core.statistics import mean_interval
from conviction.core.wording import counted
from conviction.data.training_data import TrainingData
from conviction.errors import BudgetSpent
from conviction.interventions.application import carry_out
from conviction.interventions.records import Outcome
from conviction.probing.depth import measure_depth
from conviction.probing.depth_records import Measurements
from conviction.probing.metric import Kind
from conviction.probing.metrics import properties_of_kind
from conviction.probing.metrics.shift import shift_by_seed
from conviction.probing.paired import Comparison, Floats
from conviction.studies.arm import Notes, shifted
from conviction.studies.context import StudyContext, check_questions
from conviction.studies.judge import judge, over_seeds
from conviction.studies.placebo import measure_placebo
from conviction.studies.records import Arm, Judgement, SeedRun

SEEDS = 3  # of a study with a budget, as far as that holds them
READ: tuple[Kind, ...] = ("change", "damage")  # what is read of a further seed
ONCE = "applied once: nothing in it is drawn by a seed"
UNKNOWN = "one seed was trained: what another would do is not known (--seeds 3 trains two more)"


@dataclass(frozen=True, kw_only=True)
class _Seed:
    """One training: where it lies, how it went, what was read of it and of its placebo; or why there is nothing."""

    number: int
    folder: str
    outcome: Outcome | None = None
    after: Measurements | None = None
    placebo: Measurements | None = None
    failure: Failure | None = None

    def row(self, before: Measurements, shift: Floats | None) -> SeedRun:
        """The seed judged by itself. before: of the untouched model; shift: [propositions], if it was read."""
        if self.outcome is None or self.after is None or shift is None:
            return SeedRun(seed=self.number, folder=self.folder, failure=self.failure)
        alone = judge(before, self.after, placebo=self.placebo, kinds=READ)
        interval, stop = mean_interval(shift), self.outcome.guard_stop
        return SeedRun(
            seed=self.number,
            folder=self.folder,
            seconds=self.outcome.seconds,
            guard_stop=stop.text if stop is not None else None,
            shift_nats=interval.mean,
            low=interval.low,
            high=interval.high,
            harm=tuple(p.text for p in properties_of_kind(alone.properties, "damage") if p.outcome == "no"),
        )


@dataclass
class _Repeated:
    """An arm whose first seed was judged, and its further seeds as they come.

    own       its folder; first: what lies in it
    stopped   why no further seed is trained
    took      seconds of the last seed that was trained in this attempt
    """

    arm: Arm
    plan: Plan
    own: Run
    first: _Seed
    further: list[_Seed] = field(default_factory=list)
    stopped: str = ""
    took: float | None = None

    @classmethod
    def of(cls, arm: Arm, plan: Plan, own: Run) -> _Repeated:
        """Reads the first seed from the arm's folder."""
        number = int(flat(plan.intervention)["seed"])
        outcome, after = own.load("outcome", Outcome), own.load("depth", Measurements)
        return cls(arm, plan, own, _Seed(number=number, folder=arm.folder, outcome=outcome, after=after))

    def folder(self, number: int) -> Run:
        """Where a further seed lies."""
        return self.own.child(str(number), within="seeds")

    def add(self, number: int, data: TrainingData, shared: StudyContext, budget: Budget | None) -> None:
        """Train and read one more seed, and judge the arm over all; a failure is its row, the end of the time none."""
        own, began, notes = self.folder(number), time.monotonic(), Notes(ctx=shared.ctx)
        seed, fresh = _Seed(number=number, folder=f"{self.arm.folder}/seeds/{number}"), not own.has("depth")
        shared.ctx.log(f"{self.arm.name} with seed {number} ({counted(1 + len(self.further), 'seed')} so far)")
        with own.recording_failure(shared.ctx.log) as attempt:
            seed = self._trained(seed, own, data, shared, budget, notes)
        if attempt.failure is not None and attempt.failure.kind == BudgetSpent.__name__:
            self.stopped = attempt.failure.message
            return
        self.further.append(replace(seed, failure=attempt.failure))
        if fresh:
            self.took = time.monotonic() - began
        self._judge(data, shared, notes)
        self.note(*notes.lines)

    def note(self, *lines: str, missing: int = 0) -> None:
        """Lines for who reads the arm's result, each once; missing: seeds that were asked for."""
        notes = tuple(dict.fromkeys((*self.arm.notes, *lines)))
        self.arm = self.arm.model_copy(update={"notes": notes, "seeds_missing": missing})

    def _trained(
        self, seed: _Seed, own: Run, data: TrainingData, shared: StudyContext, budget: Budget | None, notes: Notes
    ) -> _Seed:
        plan = replace(self.plan, intervention=build(self.plan.intervention, {"seed": seed.number}))
        ctx = replace(shared.ctx, run=own, guard=plan.guard, budget=budget)
        outcome = own.cached("outcome", Outcome, carry_out, plan.intervention, shared.model, data, ctx)
        after = own.cached("depth", Measurements, _read, own, shared)
        check_questions(shared.topic, after)
        placebo = None
        if self.own.has("placebo") or shifted(judge(shared.untouched, after, kinds=READ)):
            train = partial(measure_placebo, plan, outcome, data, shared, own)
            placebo = notes.attempt(f"the placebo of seed {seed.number}", train)
        return replace(seed, outcome=outcome, after=after, placebo=placebo)

    def _judge(self, data: TrainingData, shared: StudyContext, notes: Notes) -> None:
        """The arm's judgement over the seeds so far, from what lies in its folder."""
        judgement = self._over_seeds(shared)
        has_placebo = self.own.has("placebo") or any(seed.placebo is not None for seed in self.further)
        if shifted(judgement) and not has_placebo and self.first.outcome is not None:  # no seed alone showed a shift
            train = partial(measure_placebo, self.plan, self.first.outcome, data, shared, self.own)
            notes.attempt("the placebo", train)
            judgement = self._over_seeds(shared)
        self.own.update("judgement", judgement)
        self.arm = self.arm.model_copy(update={"judgement": judgement})

    def _over_seeds(self, shared: StudyContext) -> Judgement:
        parts: dict[str, Any] = {
            stage: self.own.load(stage, Measurements) if self.own.has(stage) else None
            for stage in ("placebo", "after_benign", "reversal")
        }
        assert self.first.after is not None  # noqa: S101  read in `of`
        first = replace(self.first, placebo=parts["placebo"])
        readings = [(seed.after, seed.placebo) for seed in self.further if seed.after is not None]
        before, after = shared.untouched, self.first.after
        judgement = judge(before, after, **parts, repeats=readings)
        change = Comparison(before=before, after=after, placebo=first.placebo, repeats=tuple(readings))
        shifts = iter(shift_by_seed(change).T)
        rows = [seed.row(before, next(shifts) if seed.after is not None else None) for seed in (first, *self.further)]
        return over_seeds(judgement, rows, before)


def repeat_arms(
    arms: Sequence[Arm],
    plans: Mapping[str, Plan],
    data: TrainingData,
    shared: StudyContext,
    study: Run,
    budget: Budget | None,
    keep: Callable[[Sequence[Arm]], object],
) -> list[Arm]:
    """The arms, those that are trained judged over as many seeds as the study wants and its budget holds.

    plans   by the arm's name: the settings that it was trained with
    budget  after which no seed, and no step of its training, is begun; keep: is given the arms after each seed
    """
    wanted = shared.design.seeds or SEEDS
    repeated = {
        arm.name: _Repeated.of(arm, plans[arm.name], study.child(arm.name))
        for arm in arms
        if wanted > 1 and arm.judgement is not None and draws(plans[arm.name])
    }
    for number in range(1, wanted):
        for one in repeated.values():
            seed = one.first.number + number
            if not one.stopped and not one.folder(seed).has("depth"):
                one.stopped = _why_not(one, shared, budget)
            if not one.stopped:
                one.add(seed, data, shared, budget)
                keep([repeated[arm.name].arm if arm.name in repeated else arm for arm in arms])
    for one in repeated.values():
        _conclude(one, wanted, asked=shared.design.seeds is not None)
    once = () if not (shared.design.seeds or budget) or wanted == 1 else (ONCE,)
    return [
        repeated[arm.name].arm
        if arm.name in repeated
        else arm.model_copy(update={"notes": (*arm.notes, *(once if arm.judgement is not None else ()))})
        for arm in arms
    ]


def draws(plan: Plan) -> bool:
    """Whether the arm's training draws by a seed."""
    return bool(plan.intervention.trains) and "seed" in flat(plan.intervention)


def _read(own: Run, shared: StudyContext) -> Measurements:
    """What is read of a further seed, from its model's folder."""
    changed = shared.design.load(own.changed_model)
    return measure_depth(changed, shared.topic, base=shared.baseline, kinds=READ, ctx=shared.ctx)


def _conclude(one: _Repeated, wanted: int, *, asked: bool) -> None:
    """Note what a reader has to know of seeds that are not there; those that were asked for are tried again."""
    there = 1 + len(one.further)
    failed = [seed for seed in one.further if seed.failure is not None]
    lines = [f"seed {seed.number} failed: {seed.failure.message}" for seed in failed if seed.failure is not None]
    if one.stopped and one.stopped != UNKNOWN:
        lines.append(f"{there} of {wanted} seeds: {one.stopped}")
    elif one.stopped and there == 1:
        lines.append(UNKNOWN)
    one.note(*lines, missing=len(failed) + (wanted - there if asked else 0))


def _why_not(one: _Repeated, shared: StudyContext, budget: Budget | None) -> str:
    """Why no further seed of an arm is begun; '' where one is.

    Another seed takes as long as the last one, or as the first one's training, its placebo's and its reading.
    """
    if budget is None:
        return "" if shared.design.seeds is not None else UNKNOWN
    training = one.arm.seconds or 0.0
    placebo = training if one.own.has("placebo") else 0.0
    seconds = one.took or training + placebo + shared.reading_seconds.get(one.arm.name, training)
    return f"another takes about {seconds:.0f} s, longer than the budget holds" if seconds > budget.left else ""
