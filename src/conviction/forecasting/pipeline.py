"""Know before training: ``forecast(intervention, model, data)``. Read this file first.

Arithmetic of flips → a pilot of some real steps → one gradient per answer → the run
simulated, and others beside it → a verdict. Where a teacher is imitated, it is asked
in place of all that (``teacher.py``).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from conviction.core.context import RunContext
from conviction.core.options import build, flat
from conviction.core.protocols import LanguageModel
from conviction.data.training_data import TrainingData
from conviction.errors import InputError
from conviction.forecasting.flip_cost import flip_cost
from conviction.forecasting.pilot import run_pilot
from conviction.forecasting.records import FlipCost, Forecast, PilotReport, PredictedStop, SweepPoint, Verdict
from conviction.forecasting.rows import HeldOutPair, choose_examples, number_rows
from conviction.forecasting.signal import read_signal
from conviction.forecasting.simulation import (
    Linearization,
    SimulatedRun,
    compare_pilot,
    linearize,
    read_reference,
    simulate_run,
)
from conviction.forecasting.sweep import default_sweep
from conviction.forecasting.teacher import UNKNOWN, TeacherForecast, forecast_teacher
from conviction.forecasting.verdict import UNDECIDED, judge_forecast
from conviction.training.batches import step_order
from conviction.training.loop import TrainingTask
from conviction.training.losses import find_loss
from conviction.training.objectives import Preference
from conviction.training.sensors import SENSORS

__all__ = ["forecast"]

PILOT_STEPS = 10
MOST_EXAMPLES = 96  # have gradients of their own; at 300 pairs and 3 epochs more would cost over a quarter of the run


def _unsimulated() -> str:
    """The guard's sensors whose readings a simulated run does not have."""
    names = ", ".join(sensor.name for sensor in SENSORS.values() if sensor.stops and not sensor.simulated)
    return f"what the guard reads by {names} is not simulated: a stop by one of these is not predicted"


def forecast(
    intervention: Any,
    model: LanguageModel,
    data: TrainingData,
    *,
    held_out: Sequence[HeldOutPair] = (),
    sweep: Sequence[Mapping[str, Any]] | None = None,
    pilot_steps: int = PILOT_STEPS,
    examples: int = MOST_EXAMPLES,
    ctx: RunContext | None = None,
) -> Forecast:
    """Forecast what ``intervention.apply(model, data, ctx)`` would do; the model stays as it is.

    held_out  questions that are not trained on, with both answers (``rows.held_out_pairs`` of a topic)
    sweep     options of other settings to simulate; None: a small grid, where the planned settings will not do
    examples  trained examples that are read and have gradients of their own; the others are stood in for

    Raises InputError for a model without weights, or an intervention that has nothing to train on.
    """
    ctx, clock = ctx or RunContext(), _Clock()
    task = _task(intervention, model, data, ctx)
    if task.teacher is not None:
        with clock("teacher"):
            expected = forecast_teacher(intervention, task, held_out, sweep or (), ctx.progress("asking the teacher"))
        return _by_teacher(expected, _plan(intervention, task, data), clock)
    with clock("arithmetic"):
        chosen = choose_examples(task, first=pilot_steps, most=examples)
        reference = read_reference(task, chosen, ctx.progress("reading the untouched model"))
        cost = _cost(task, chosen, reference)
    known = {"cost": cost, **_plan(intervention, task, data)}
    if obstacle := _obstacle(task):
        verdict = Verdict(kind="none", reasons=(obstacle,), advice=("forecast it with tune=lora",))
        return Forecast(**known, verdict=verdict, unknown=(obstacle, *_unknown(task)), seconds=clock.seconds)
    rows = number_rows(task.model, task, chosen, held_out)
    with clock("pilot"):
        pilot = run_pilot(task, rows, steps=pilot_steps, ctx=ctx)
    with clock("gradients"):
        linearization = linearize(task, rows, held_out, pilot, reference, task.guard, ctx.progress("taking gradients"))
    with clock("simulation"):
        run = simulate_run(linearization, task)
        evidence = _evidence(run, linearization, task, pilot.report)
    reached = {"extrapolation": run.run.extrapolation[-1], "last": run.step_forecasts[-1]}
    judged = {**evidence, "cost": cost, "pairs": len(task.examples), **reached}
    with clock("sweep"):
        undecided = judge_forecast(**judged, settings=()).kind in UNDECIDED
        grid = sweep if sweep is not None else default_sweep(known["options"]) if undecided else ()
        settings = [_try(linearization, task, intervention, options) for options in grid]
    return Forecast(
        **known,
        **evidence,
        verdict=judge_forecast(**judged, settings=settings),
        extrapolation=run.run.extrapolation[-1],
        step_forecasts=run.step_forecasts,
        pair_forecasts=run.pair_forecasts,
        settings=tuple(settings),
        sampling_error=linearization.kernel.sampling_error,
        unsampled_examples=rows.unsampled_examples,
        unknown=(*_unknown(task), _unsimulated()),
        seconds=clock.seconds,
    )


def _by_teacher(expected: TeacherForecast, known: Mapping[str, Any], clock: _Clock) -> Forecast:
    """Of a distillation, which is not simulated."""
    return Forecast(**known, **vars(expected), cost=None, unknown=(UNKNOWN,), seconds=clock.seconds)


def _plan(intervention: Any, task: TrainingTask, data: TrainingData) -> dict[str, Any]:
    """What is forecast."""
    return {
        "model": task.model.id,
        "data": data.name,
        "intervention": intervention.name,
        "options": _options(intervention, task),
        "steps": len(task.order),
        "notes": task.notes,
        "provenance": _provenance(task, data),
    }


def _evidence(
    run: SimulatedRun, linearization: Linearization, task: TrainingTask, pilot: PilotReport
) -> dict[str, Any]:
    """What the verdict rests on, besides the arithmetic of flips."""
    report = compare_pilot(pilot, linearization, task)
    return {
        "flips": run.flips,
        "predicted_stop": _first(run.guard_utilisation.predicted_stop, report.predicted_stop),
        "guard_utilisation": run.guard_utilisation.share,
        "signal": read_signal(linearization.kernel, linearization.pairs) if linearization.pairs is not None else None,
        "pilot": report,
    }


def _cost(task: TrainingTask, chosen: Sequence[int], reference: Sequence[Sequence[float]]) -> FlipCost | None:
    objective = task.objective
    if not isinstance(objective, Preference):
        return None
    counts = [task.examples[i].counts for i in chosen]
    cap = task.guard.margin_cap
    return flip_cost(objective.loss, objective.beta, objective.parameters, reference, counts, cap=cap)


def _obstacle(task: TrainingTask) -> str | None:
    """Why there can be no simulation, if so."""
    if task.begins_random:
        return "a model that begins random has no gradients worth extrapolating"
    if task.weights.tune == "full":
        return "training is simulated on an adapter's matrices: with tune=full only the arithmetic of flips is known"
    return None


def _unknown(task: TrainingTask) -> tuple[str, ...]:
    objective = task.objective
    if not isinstance(objective, Preference):
        return ("what a flip costs: this method does not train on pairs",)
    unknown = []
    loss = find_loss(objective.loss)
    if loss.no_flip_point:
        unknown.append(f"what a flip costs under {loss.name}: {loss.no_flip_point}")
    if loss.needs_kl:
        unknown.append(f"the KL term of {loss.name}, measured on answers to other prompts: it counts as 0 here")
    return tuple(unknown)


def _task(intervention: Any, model: LanguageModel, data: TrainingData, ctx: RunContext) -> TrainingTask:
    """The run to foresee. Raises InputError for an intervention that trains nothing."""
    if not intervention.trains:
        raise InputError(
            f"'{intervention.name}' trains nothing: there is no run to foresee",
            hint="apply it and probe: that is as quick as a forecast",
        )
    task: TrainingTask = intervention.task(model, data, ctx)
    return task


def _options(intervention: Any, task: TrainingTask) -> dict[str, Any]:
    """All settings, the loss's own defaults filled in."""
    given = flat(intervention)
    if isinstance(task.objective, Preference):
        given |= {"beta": task.objective.beta, **task.objective.parameters}
    return given


def _provenance(task: TrainingTask, data: TrainingData) -> dict[str, Any]:
    return {
        "conviction": version("conviction"),
        "model": task.model.describe(),
        "data_sha256": data.digest,
        "run": task.digest,
        "guard": flat(task.guard),
    }


def _first(*troubles: PredictedStop | None) -> PredictedStop | None:
    return min((t for t in troubles if t is not None), key=lambda t: t.step, default=None)


def _try(linearization: Linearization, task: TrainingTask, intervention: Any, options: Mapping[str, Any]) -> SweepPoint:
    """Simulate other settings on the same gradients."""
    began = time.perf_counter()
    other = build(intervention, options)
    objective = other.objective() if isinstance(task.objective, Preference) else task.objective
    order = step_order(len(task.examples), other.training)
    seen = simulate_run(
        linearization, dataclasses.replace(task, objective=objective, training=other.training, order=order)
    )
    last = seen.step_forecasts[-1]
    return SweepPoint(
        options=dict(options),
        steps=len(order),
        flips=seen.flips,
        margin=last.margin,
        test_gap_nats=last.test_gap_nats,
        predicted_stop=seen.guard_utilisation.predicted_stop,
        guard_utilisation=seen.guard_utilisation.share,
        extrapolation=seen.run.extrapolation[-1],
        seconds=time.perf_counter() - began,
    )


class _Clock:
    """Seconds of each part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = time.perf_counter() - began
