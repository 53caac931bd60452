"""Compare: a whole ``study``, and ``compare`` for what was applied already."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, overload

from conviction.config.plan import plan_arms
from conviction.core.context import Budget, RunContext
from conviction.core.names import is_name
from conviction.core.options import check_number, flat
from conviction.core.protocols import LanguageModel
from conviction.core.run import Run
from conviction.core.run_head import new_folder
from conviction.core.wording import printable
from conviction.data.training_data import TrainingData
from conviction.errors import InputError
from conviction.forecasting.records import ForecastScore
from conviction.models.fetching import named_in
from conviction.studies.comparison import AppliedRun, compare_runs, load_applied_runs
from conviction.studies.context import StudyDesign
from conviction.studies.forecast_comparison import compare_with_forecast
from conviction.studies.loading import loads_in_one_dtype
from conviction.studies.records import Study
from conviction.studies.study import study as run_study
from conviction.training.guard import Guard
from conviction.verbs.folders import Place
from conviction.verbs.inputs import (
    Load,
    ModelLike,
    TopicLike,
    as_count,
    as_folder,
    as_minutes,
    as_model,
    as_topic,
    described,
    loading,
    settings_of,
)

__all__ = ["compare", "study"]

MOST_BENIGN, MOST_SEEDS = 100_000, 100


def study(
    topic: TopicLike,
    model: ModelLike,
    interventions: Sequence[Any],
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    guard: str | Guard | None = None,
    budget_minutes: float | None = None,
    benign_steps: int | None = None,
    placebo: bool = True,
    tune_minutes: float | Literal["auto"] | None = "auto",
    seeds: int | None = None,
    run: str | Path | None = None,
    load: Load | None = None,
    ctx: RunContext | None = None,
) -> Study:
    """What works on this model, how deep does it go, and what does it break?

    ::

        result = study("obesity", "smollm2-135m", ["system_prompt", "dpo"], options={"dpo": {"beta": 0.05}})

    interventions   names, or objects such as ``Dpo(beta=0.05)``; each once
    options         fields of an arm and of its guard, by the arm's name
    budget_minutes  after which no arm and no step of training is begun; an arm that was trained is judged to the end
    benign_steps    of training before durability is read; 0: none; None: ten, of arms whose verdict it may change
    placebo         train each trained arm on another subject, too
    tune_minutes    of searching settings on a part of the train split, shared by the arms; "auto": 40 % of the
                    budget, or 10 where there is none; None: no search, settings stay as they are given
    seeds           that every trained arm is trained with; None: three as far as ``budget_minutes`` holds them, one
                    where there is none
    run             the study's folder, which it needs: its arms lie there; None: a new one in ``runs/``
    load            how models are loaded by name, the arms' folders too: called with ``dtype=`` of the first one

    The folder is ``result.folder``. An arm that fails is in the result with its
    failure, and the same call with the same run tries it again. Raises
    InputError for an unknown arm or field, RunError for a folder of something else.
    """
    ctx, kit = ctx or RunContext(), as_topic(topic)
    benign_steps = _as_benign_steps(benign_steps)
    if isinstance(interventions, str) or not isinstance(interventions, Sequence):
        raise InputError(f"interventions is {interventions!r}", hint='give a list, such as ["system_prompt", "dpo"]')
    seeds = None if seeds is None else as_count(seeds, "seeds", at_most=MOST_SEEDS)
    arms = plan_arms(interventions, options or {}, ctx.guard if guard is None else guard)
    call = described(model, load) | {"topic_sha256": kit.digest, "target": kit.target, "placebo": placebo}
    call |= {"benign_steps": benign_steps, "tune_minutes": as_minutes(tune_minutes), "seeds": seeds}
    call |= {"data_sha256": TrainingData.from_topic(kit).digest}
    call |= {arm.intervention.name: repr([settings_of(arm.intervention), flat(arm.guard)]) for arm in arms}
    if budget_minutes is not None:
        ctx = _with_budget(ctx, budget_minutes)

    def measure(own: RunContext, run: Run) -> Study:
        load_one = _loader(model, load, run, own)
        design = StudyDesign(
            load=load_one, benign_steps=benign_steps, placebo=placebo, tune_minutes=tune_minutes, seeds=seeds
        )
        return run_study(kit, as_model(model, load_one), arms, run, own, design)

    return _kept(_place(run, ctx, kit.name, "study", call), measure)


@overload
def compare(
    run: str | Path,
    /,
    *,
    model: ModelLike | None = None,
    load: Load | None = None,
    ctx: RunContext | None = None,
) -> ForecastScore: ...
@overload
def compare(
    first: str | Path,
    second: str | Path,
    /,
    *more: str | Path,
    topic: TopicLike | None = None,
    model: ModelLike | None = None,
    benign_steps: int | None = None,
    run: str | Path | None = None,
    load: Load | None = None,
    ctx: RunContext | None = None,
) -> Study: ...
def compare(
    *runs: str | Path,
    topic: TopicLike | None = None,
    model: ModelLike | None = None,
    benign_steps: int | None = None,
    run: str | Path | None = None,
    load: Load | None = None,
    ctx: RunContext | None = None,
) -> ForecastScore | Study:
    """One run: hold its frozen forecast to what happened. Several: a study's table of them; they stay as they are.

    ::

        score = compare("runs/x")                       # applied with forecast_first=True
        table = compare("runs/a", "runs/b", run="runs/table")

    topic         of several runs: what is asked; None: what the first run learned from
    model         the untouched model; None: as the runs name it
    benign_steps  of training before durability is read; 0: none; None: ten, of arms whose verdict it may change
    run           of several runs: the folder of the comparison; None: a new one in ``runs/``

    A score is kept in the run's folder, as ``comparison.json``. Raises RunError for a folder that was not applied
    to its end, or of one run without a forecast.
    """
    benign_steps = _as_benign_steps(benign_steps)
    ctx, folders = ctx or RunContext(), [as_folder(one, "a run") for one in runs]
    if not folders:
        raise InputError("there is no run to compare", hint="give the folder of one with a forecast, or of several")
    if len(folders) == 1:
        return _score(folders[0], model, loading(load, ctx), ctx)
    applied = load_applied_runs(folders)
    kit = as_topic(topic if topic is not None else _topic_of(applied[0]))
    base = model if model is not None else str(applied[0].outcome.base["id"])
    call = described(base, load) | {"topic_sha256": kit.digest, "target": kit.target, "benign_steps": benign_steps}
    call |= {"runs": [str(one) for one in applied]}

    def measure(own: RunContext, run: Run) -> Study:
        load_one = _loader(base, load, run, own)
        design = StudyDesign(load=load_one, benign_steps=benign_steps, placebo=False)
        if model is not None:
            untouched = as_model(model, load_one)
        else:
            with named_in(f"{folders[0] / 'outcome.json'}", consent="give --model NAME (in Python model=)"):
                untouched = load_one(str(base))
        return compare_runs(applied, kit, untouched, run, own, design)

    return _kept(_place(run, ctx, kit.name, "compare", call), measure)


def _topic_of(applied: AppliedRun) -> str:
    """What a run learned from, where that can be a topic's name: a record's text is no path to look into."""
    name = applied.outcome.data.name
    if not is_name(name):
        raise InputError(f"{printable(applied.run.folder)} learned from {printable(name)}", hint="give topic=")
    return name


def _score(folder: Path, model: ModelLike | None, load: Load, ctx: RunContext) -> ForecastScore:
    run = Run(folder, resumed=True)
    base = model if model is None or isinstance(model, str | Path) else as_model(model, load)

    def load_one(name: str) -> LanguageModel:
        return base if isinstance(base, LanguageModel) and name == base.id else load(name)

    named = base.id if isinstance(base, LanguageModel) else None if base is None else str(base)
    return run.save("comparison", compare_with_forecast(run, load_one, base=named, ctx=ctx))


class _ArmsMissing(Exception):  # noqa: N818  leaves a folder unfinished, so that the same call tries the arms again
    """Ends the work in a study's folder."""


def _kept(place: Place, measure: Callable[[RunContext, Run], Study]) -> Study:
    """A study read back where it was finished; else measured, and its folder left unfinished where arms are missing."""
    if (known := place.finished("study", Study)) is not None:
        return known.model_copy(update={"folder": place.folder})
    results: list[Study] = []
    with suppress(_ArmsMissing), place.open() as own:
        assert own.run is not None  # noqa: S101  a study's place has a folder
        results.append(measure(own, own.run).model_copy(update={"folder": own.run.folder}))
        _check_all_judged(results[0])
    return results[0]


def _check_all_judged(study: Study) -> None:
    if study.unfinished:
        raise _ArmsMissing


def _place(run: str | Path | None, ctx: RunContext, topic: str, verb: str, call: Mapping[str, Any]) -> Place:
    run = new_folder(topic, verb) if run is None and ctx.run is None else run
    return Place.of(run, ctx, topic=topic, verb=verb, call=call)


def _loader(model: ModelLike, load: Load | None, run: Run, ctx: RunContext) -> Callable[[str], LanguageModel]:
    """Loads the untouched model and the arms' alike: in the dtype, and on the device, of one that is there already."""
    dtype = None if isinstance(model, str | Path) else model.describe().get("dtype")
    return loads_in_one_dtype(loading(load, ctx, model), run, dtype=dtype)


def _with_budget(ctx: RunContext, minutes: float) -> RunContext:
    check_number("budget_minutes", minutes, at_least=0)
    return replace(ctx, budget=Budget(60 * minutes))


def _as_benign_steps(value: int | None) -> int | None:
    return None if value is None else as_count(value, "benign_steps", at_least=0, at_most=MOST_BENIGN)
