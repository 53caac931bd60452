"""Change a model: ``forecast`` what an intervention would do, ``apply`` it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from conviction.config.plan import Plan, plan_intervention
from conviction.core.context import RunContext, main_process, several_processes
from conviction.core.options import build, flat
from conviction.core.protocols import LanguageModel
from conviction.core.run import Run
from conviction.errors import InputError
from conviction.forecasting.records import Forecast
from conviction.forecasting.sweep import check_size, parse_sweep
from conviction.interventions.records import Outcome
from conviction.training.guard import Guard
from conviction.verbs.folders import Place
from conviction.verbs.inputs import (
    DataLike,
    Load,
    ModelLike,
    Source,
    as_count,
    as_folder,
    as_minutes,
    as_model,
    as_source,
    described,
    held_out,
    load_like,
    loading,
    settings_of,
    told,
)

if TYPE_CHECKING:
    from conviction.forecasting.rows import HeldOutPair

__all__ = ["apply", "forecast"]

MOST_EXAMPLES, PILOT_STEPS = 96, 10
MOST_COUNTED = 100_000  # examples with gradients of their own, or pilot steps
Test = DataLike | Sequence["HeldOutPair"] | None


def forecast(
    intervention: Any,
    model: ModelLike,
    data: DataLike,
    *,
    test: Test = None,
    sweep: Mapping[str, Sequence[Any]] | Sequence[Any] | Literal["search"] | None = None,
    examples: int = MOST_EXAMPLES,
    pilot_steps: int = PILOT_STEPS,
    guard: str | Guard | None = None,
    run: str | Path | None = None,
    load: Load | None = None,
    ctx: RunContext | None = None,
    **fields: Any,
) -> Forecast:
    """Know before training: will it flip, at which settings, and will it break? The model stays as it is.

    ::

        expected = forecast("dpo", "smollm2-135m", "obesity", beta=0.05)

    intervention  a name, or an object such as ``Dpo(beta=0.05)``; ``fields`` are its own and its guard's, as with -o
    test          what flips are foreseen of: a topic, or pairs that are not trained on; None: the topic's test split
    sweep         other settings to simulate, ``{"beta": [0.01, 0.1]}``; "search": those that ``tune_minutes`` searches,
                  at its length of a run; None: a small grid where the plan will not do
    examples      trained examples that get gradients of their own; pilot_steps: real steps before the forecast
    run           a folder that ``forecast.json`` is kept in; finished with the same arguments, it is read

    Raises InputError for an unknown field, a model without weights, or an intervention that trains nothing.
    """
    ctx = ctx or RunContext()
    plan = plan_intervention(intervention, fields, ctx.guard if guard is None else guard)
    if sweep in ("search", ["search"]):
        plan, sweep = _searched(plan)
    grid = _grid(plan.intervention, sweep)
    examples = as_count(examples, "examples", at_most=MOST_COUNTED)
    pilot_steps = as_count(pilot_steps, "pilot_steps", at_most=MOST_COUNTED)
    source = told(as_source(data), ctx)
    asked = held_out(test, source)
    call = _call(plan, model, source, load) | {"examples": examples, "pilot_steps": pilot_steps}
    call |= {"sweep": grid, "test": _digest(asked)}
    place = Place.of(run, ctx, topic=source.label, verb=f"forecast-{plan.intervention.name}", call=call)

    def measure(loaded: LanguageModel, own: RunContext) -> Forecast:
        from conviction.forecasting.pipeline import forecast as foresee

        result = foresee(
            plan.intervention,
            loaded,
            source.data,
            held_out=asked,
            sweep=grid,
            pilot_steps=pilot_steps,
            examples=examples,
            ctx=replace(own, guard=plan.guard),
        )
        return result if own.run is None else own.run.save_forecast(result)

    return place.result("forecast", Forecast, model, load, measure)


def apply(
    intervention: Any,
    model: ModelLike,
    data: DataLike,
    *,
    guard: str | Guard | None = None,
    run: str | Path | None = None,
    tracker: str | None = None,
    tune_minutes: float | Literal["auto"] | None = None,
    forecast_first: bool = False,
    test: Test = None,
    load: Load | None = None,
    ctx: RunContext | None = None,
    **fields: Any,
) -> Outcome:
    """Change a model, under a guard that stops before it breaks; the given model stays as it is.

    ::

        outcome = apply("dpo", "smollm2-135m", "obesity", run="runs/x", guard="strict", learning_rate=1e-4)

    intervention    a name, or an object such as ``Dpo(beta=0.05)``; ``fields`` are its own and its guard's, as with -o
    guard           "strict", "default", "off", "none" or a Guard
    run             a folder that everything is kept in, the changed model in its ``model/``; an unfinished one is
                    continued, one that is finished with the same arguments is read; None: nothing is written
    tracker         tensorboard, wandb, mlflow or trackio
    tune_minutes    search for settings so long ("auto": 10), on a part of the topic's train split, then apply what
                    was chosen;
                    fields that are given stay as they are. What was tried is in ``tuning.json``
    forecast_first  write a forecast into the run folder before the first step, of ``test`` as ``forecast`` takes it

    The changed model is ``outcome.changed``; why the guard stopped it, if it did, ``outcome.guard_stop``.
    Raises InputError for an unknown field, or data that the intervention has no use for.
    """
    ctx = ctx or RunContext()
    plan = plan_intervention(intervention, fields, ctx.guard if guard is None else guard)
    tracker = _checked_tracker(ctx.tracker if tracker is None else tracker)
    source = told(as_source(data), ctx)
    _check_forecast_first(forecast_first, test, kept=run is not None or ctx.run is not None)
    asked = held_out(test, source) if forecast_first else []
    call = _call(plan, model, source, load) | {"tracker": tracker, "forecast_first": forecast_first}
    call |= {"test": _digest(asked), "tune_minutes": as_minutes(tune_minutes)}
    place = Place.of(run, ctx, topic=source.label, verb=f"apply-{plan.intervention.name}", call=call)
    again = load_like(model, load)
    if (known := place.finished("outcome", Outcome)) is not None:
        return _in_folder(known, Run(as_folder(run)), again, ctx)
    loaded = as_model(model, loading(load, ctx))
    with place.open() as opened:
        own, steps = replace(opened, guard=plan.guard, tracker=tracker), list[dict[str, Any]]()
        plan = plan if tune_minutes is None else _tuned(plan, loaded, source, own, tune_minutes)
        if own.run is None:
            outcome = _carry_out(plan, loaded, source, _recording(own, steps))
            return outcome.model_copy(update={"steps": tuple(steps)})
        if forecast_first:
            _forecast_once(own.run, plan, loaded, source, asked, own)
        if (earlier := place.kept("outcome", Outcome)) is not None:
            return _in_folder(earlier, own.run, again, ctx)
        outcome = _carry_out(plan, loaded, source, own)
        if main_process():
            own.run.save("outcome", outcome)
        return _in_folder(outcome, own.run, again, ctx)


def _checked_tracker(tracker: str | None) -> str | None:
    """The tracker, or None for none. Raises InputError for an unknown one."""
    from conviction.training.tracking import check_tracker

    if tracker is not None:
        check_tracker(tracker)
    return tracker


def _tuned(plan: Plan, model: LanguageModel, source: Source, ctx: RunContext, wanted: float | Literal["auto"]) -> Plan:
    """The plan with settings that were searched. Raises InputError where there is no topic to search on."""
    from conviction.studies.tuning import tune, tuned
    from conviction.studies.tuning_records import search_minutes

    if source.topic is None:
        raise InputError("settings are searched on a topic's propositions, and there is none", hint="give a topic")
    if several_processes():
        raise InputError(
            "settings are searched by one process", hint="leave --tune out, or leave accelerate launch out"
        )
    tuning = tune(plan, source.topic, model, ctx, minutes=search_minutes(wanted), kept=ctx.run)
    ctx.log(f"settings: {tuning.summary}")
    return tuned(plan, tuning)


def _check_forecast_first(forecast_first: bool, test: Test, *, kept: bool) -> None:
    if test is not None and not forecast_first:
        raise InputError("there is a test, and no forecast that would be of it", hint="give --forecast, too")
    if forecast_first and not kept:
        raise InputError("a forecast that comes first is kept in a run folder, and there is none", hint="give run=")


def _call(plan: Plan, model: ModelLike, source: Source, load: Load | None) -> dict[str, Any]:
    """What tells one application from another."""
    settings = settings_of(plan.intervention)
    limits = {f"guard {name}": value for name, value in flat(plan.guard).items()}
    return described(model, load) | {"data_sha256": source.data.digest} | settings | limits


def _digest(asked: Sequence[HeldOutPair]) -> str:
    """Tells questions apart by their texts: ids are only places in a file."""
    rows = [(repr(q.pair.messages), q.pair.chosen, q.pair.rejected, q.role) for q in asked]
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def _searched(plan: Plan) -> tuple[Plan, list[dict[str, Any]]]:
    """The plan at the length of a trial, and the settings that a search tries. Raises InputError where it has none."""
    from conviction.studies.tuning import search_cells, trial_length

    cells = search_cells(plan)
    if len(cells) < 2:
        name = plan.intervention.name
        raise InputError(f"{name} has no settings to search", hint="give --sweep FIELD=VALUES, or fewer fields with -o")
    return replace(plan, intervention=build(plan.intervention, trial_length(plan))), cells


def _grid(intervention: Any, sweep: Mapping[str, Sequence[Any]] | Sequence[Any] | None) -> list[Any] | None:
    """Settings to simulate, from ``{"beta": [0.01, 0.1]}``, texts as the command takes them, or dicts of fields."""
    if isinstance(sweep, Mapping):
        sweep = [f"{name}={','.join(map(str, values))}" for name, values in sweep.items()]
    if not sweep:
        return None
    texts = [text for text in sweep if isinstance(text, str)]
    if texts:
        return parse_sweep(intervention, texts)
    check_size(len(sweep))
    return list(sweep)


def _forecast_once(
    run: Run, plan: Plan, model: LanguageModel, source: Source, asked: Sequence[HeldOutPair], ctx: RunContext
) -> None:
    """Write the forecast of a run before its first step; of one that is continued it is there already."""
    from conviction.forecasting.pipeline import forecast as foresee

    if several_processes():
        raise InputError(
            "a forecast is made by one process", hint="leave --forecast out, or leave accelerate launch out"
        )
    if run.has("forecast"):
        expected = run.load_forecast(Forecast)
    else:
        expected = run.save_forecast(foresee(plan.intervention, model, source.data, held_out=asked, ctx=ctx))
    ctx.log(f"forecast: {expected.summary} ({run.folder}/forecast.json)")


def _carry_out(plan: Plan, model: LanguageModel, source: Source, ctx: RunContext) -> Outcome:
    """The outcome, its report with a last line on whether the topic's view moved: a healthy run may have moved nothing.

    Rows are kept as ``view.json`` and its samples. Of several processes none asks: they would wait for each other.
    What fails here must not take a finished training run along.
    """
    from conviction.interventions.application import carry_out
    from conviction.probing.view import measure_view_change

    outcome, topic = carry_out(plan.intervention, model, source.data, ctx), source.data.topic
    if topic is None or several_processes():
        return outcome
    try:
        view = measure_view_change(model, outcome.changed, topic, ctx)
    except Exception as error:
        note = f"whether the view moved could not be measured: {error}"
        return outcome.model_copy(update={"notes": (*outcome.notes, note)})
    if view is None:
        return outcome
    if ctx.run is not None:
        ctx.run.save("view", view)
    evidence = {**outcome.evidence, "view": view.model_dump(mode="json")}
    return outcome.model_copy(update={"report": (*outcome.report, ("view", view.text)), "evidence": evidence})


def _recording(ctx: RunContext, steps: list[dict[str, Any]]) -> RunContext:
    """The context with every step's record kept, too."""
    tell = ctx.callbacks.on_step

    def on_step(record: Mapping[str, Any], total: int) -> None:
        steps.append(dict(record))
        tell(record, total)

    return replace(ctx, callbacks=replace(ctx.callbacks, on_step=on_step))


def _in_folder(outcome: Outcome, run: Run, load: Load | None, ctx: RunContext) -> Outcome:
    steps = outcome.steps_in(run, ctx.log)
    return outcome.model_copy(update={"folder": run.folder, "load": load, "steps": steps})
