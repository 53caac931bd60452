"""Know before training: ``forecast(model, material, intervention)``. Read this file first.

Arithmetic of flips → a pilot of ten real steps → one gradient per answer → the run
simulated, and others beside it → a verdict.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from conviction.core.forecast import FlipCost, Forecast, Setting, Trouble, Verdict
from conviction.core.material import Material
from conviction.core.protocols import LanguageModel
from conviction.core.settings import build, flat
from conviction.errors import InputError
from conviction.forecast.flip import WITHOUT_CLOSED_FORM, flip_cost
from conviction.forecast.pilot import run_pilot
from conviction.forecast.rows import Asked, choose_examples, lay_out_rows
from conviction.forecast.scene import Scene, compare_pilot, foresee, read_reference, set_scene
from conviction.forecast.signal import read_signal
from conviction.forecast.sweep import default_sweep
from conviction.forecast.verdict import judge_forecast
from conviction.train.batches import step_order
from conviction.train.guard import Guard
from conviction.train.loop import Task, Watch
from conviction.train.objectives import Preference

__all__ = ["forecast"]

PILOT_STEPS = 10
MOST_EXAMPLES = 96  # have gradients of their own; at 300 pairs and 3 epochs more would cost over a quarter of the run
UNSIMULATED = (
    "entropy and greedy samples, which the guard also reads, are not simulated: a stop by them is not foreseen"
)


def forecast(
    model: LanguageModel,
    material: Material,
    intervention: Any,
    *,
    asked: Sequence[Asked] = (),
    guard: Guard | None = None,
    sweep: Sequence[Mapping[str, Any]] | None = None,
    pilot_steps: int = PILOT_STEPS,
    examples: int = MOST_EXAMPLES,
    watch: Watch | None = None,
) -> Forecast:
    """Foresee what ``intervention.apply(model, material, guard=guard)`` would do; the model stays as it is.

    asked     questions that are not trained on, with the wanted and the other answer (``rows.questions_of`` a topic)
    sweep     options of other settings to simulate; None: a small grid, where the planned settings will not do
    examples  trained examples that are read and have gradients of their own; the others are stood in for

    Raises InputError for a model without weights, or an intervention that has nothing to train on.
    """
    watch, guard = watch or Watch(), guard or Guard()
    clock = _Clock()
    with clock("arithmetic"):
        task = _task(intervention, model, material, guard, watch)
        chosen = choose_examples(task, first=pilot_steps, most=examples)
        reference = read_reference(task, chosen, watch.bars("reading the untouched model"))
        cost = _cost(task, chosen, reference)
    known: dict[str, Any] = {
        "model": model.id,
        "material": material.name,
        "intervention": intervention.name,
        "options": _options(intervention, task),
        "steps": len(task.order),
        "cost": cost,
        "notes": task.notes,
        "provenance": _provenance(task, material, guard),
    }
    if obstacle := _obstacle(task):
        verdict = Verdict(kind="none", reasons=(obstacle,), advice=("forecast it with tune=lora",))
        return Forecast(**known, verdict=verdict, unknown=(obstacle, *_unknown(task)), seconds=clock.seconds)
    rows = lay_out_rows(task.model, task, chosen, asked)
    with clock("pilot"):
        pilot = run_pilot(task, rows, steps=pilot_steps, watch=watch)
    with clock("gradients"):
        scene = set_scene(task, rows, asked, pilot, reference, guard, watch.bars("taking gradients"))
    with clock("simulation"):
        seen = foresee(scene, task)
        report = compare_pilot(pilot.report, scene, task)
        signal = read_signal(scene.kernel, scene.pairs) if scene.pairs is not None else None
    evidence: dict[str, Any] = {
        "flips": seen.flips,
        "trouble": _first(seen.strain.trouble, report.trouble),
        "strain": seen.strain.share,
        "cost": cost,
        "signal": signal,
        "pilot": report,
    }
    judged = {**evidence, "pairs": len(task.examples), "reach": seen.run.reach[-1], "last": seen.moments[-1]}
    with clock("sweep"):
        undecided = judge_forecast(**judged, settings=()).kind in {"style only", "not by this method"}
        grid = sweep if sweep is not None else default_sweep(known["options"]) if undecided else ()
        settings = [_try(scene, task, intervention, options) for options in grid]
    return Forecast(
        **known,
        **{name: value for name, value in evidence.items() if name != "cost"},
        verdict=judge_forecast(**judged, settings=settings),
        reach=seen.run.reach[-1],
        moments=seen.moments,
        outlooks=seen.outlooks,
        settings=tuple(settings),
        sampling_error=scene.kernel.sampling_error,
        stand_ins=rows.stand_ins,
        unknown=(*_unknown(task), UNSIMULATED),
        seconds=clock.seconds,
    )


def _cost(task: Task, chosen: Sequence[int], reference: Sequence[Sequence[float]]) -> FlipCost | None:
    objective = task.objective
    if not isinstance(objective, Preference):
        return None
    counts = [task.examples[i].counts for i in chosen]
    cap = task.guard.margin_cap
    return flip_cost(objective.loss, objective.beta, objective.parameters, reference, counts, cap=cap)


def _obstacle(task: Task) -> str | None:
    """Why there can be no simulation, if so."""
    if task.begins_random:
        return "a model that begins random has no gradients worth extrapolating"
    if task.weights.tune == "full":
        return "training is simulated on an adapter's matrices: with tune=full only the arithmetic of flips is known"
    return None


def _unknown(task: Task) -> tuple[str, ...]:
    objective = task.objective
    if not isinstance(objective, Preference):
        return ("what a flip costs: this method does not train on pairs",)
    found = []
    if objective.loss in WITHOUT_CLOSED_FORM:
        found.append(f"what a flip costs under {objective.loss}: {WITHOUT_CLOSED_FORM[objective.loss]}")
    if objective.needs_kl:
        found.append("the KL term of kto, measured on answers to other prompts: it counts as 0 here")
    return tuple(found)


def _task(intervention: Any, model: LanguageModel, material: Material, guard: Guard, watch: Watch) -> Task:
    """The run to foresee. Raises InputError for an intervention that trains nothing."""
    if not hasattr(intervention, "task"):
        raise InputError(
            f"'{intervention.name}' trains nothing: there is no run to foresee",
            hint="apply it and probe: that is as quick as a forecast",
        )
    task: Task = intervention.task(model, material, guard=guard, watch=watch)
    return task


def _options(intervention: Any, task: Task) -> dict[str, Any]:
    """All settings, the loss's own defaults filled in."""
    given = flat(intervention)
    if isinstance(task.objective, Preference):
        given |= {"beta": task.objective.beta, **task.objective.parameters}
    return given


def _provenance(task: Task, material: Material, guard: Guard) -> dict[str, Any]:
    return {
        "conviction": version("conviction"),
        "model": task.model.describe(),
        "material_sha256": material.digest,
        "run": task.digest,
        "guard": flat(guard),
    }


def _first(*troubles: Trouble | None) -> Trouble | None:
    return min((t for t in troubles if t is not None), key=lambda t: t.step, default=None)


def _try(scene: Scene, task: Task, intervention: Any, options: Mapping[str, Any]) -> Setting:
    """Simulate other settings on the same gradients."""
    began = time.perf_counter()
    other = build(intervention, options)
    objective = other.objective() if isinstance(task.objective, Preference) else task.objective
    order = step_order(len(task.examples), other.training)
    seen = foresee(scene, dataclasses.replace(task, objective=objective, training=other.training, order=order))
    last = seen.moments[-1]
    return Setting(
        options=dict(options),
        steps=len(order),
        flips=seen.flips,
        margin=last.margin,
        test_gap_nats=last.test_gap_nats,
        trouble=seen.strain.trouble,
        strain=seen.strain.share,
        reach=seen.run.reach[-1],
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
