"""A few real steps under the guard, on a copy that is not kept: where gradients are taken, and what they are held to.

At the very start LoRA's B is 0: A has no gradient, the loss has not begun to bend,
and in bf16 the first updates are lost in rounding. The pilot goes to about the
middle of the planned way, at a constant rate, on the run's own first batches.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from conviction.core.context import Callbacks, RunContext
from conviction.forecasting.records import PilotReport, PredictedStop
from conviction.forecasting.rows import Rows
from conviction.models.lora import ADAPTER, adapter_layers
from conviction.training.loop import TrainingTask, train
from conviction.training.policy import Policy, plain_policy, trainable_parameters
from conviction.training.settings import Training
from conviction.training.step import rate_at

__all__ = ["Pilot", "PilotReading", "distance", "pilot_rate", "run_pilot"]

SHARE = 0.5  # of the planned way
FASTEST = 3.0  # times the planned peak rate


@dataclass(frozen=True)
class Pilot:
    """The adapter at its start and after the pilot's steps.

    policy    at the pilot's end, without lean layers
    starts    A₀ of each adapted layer, by the layer's name
    readings  what the guard read after each of its steps
    """

    policy: Policy
    starts: dict[str, Tensor]
    report: PilotReport
    readings: tuple[PilotReading, ...]


@dataclass(frozen=True)
class PilotReading:
    """way: sum of learning rates up to a step; chosen_drop: nats per token; readings: the sensors', by their names."""

    way: float
    chosen_drop: float
    readings: Mapping[str, Any]


def distance(training: Training, steps: int, upto: int | None = None) -> float:
    """Sum of the learning rates of a run's steps: about how far AdamW carries each coordinate."""
    return math.fsum(rate_at(step, steps, training) for step in range(1, (steps if upto is None else upto) + 1))


def pilot_rate(training: Training, planned: int, steps: int) -> float:
    """The constant rate that takes ``steps`` to the middle of a run of ``planned`` steps, within bounds."""
    return min(SHARE * distance(training, planned) / steps, FASTEST * training.learning_rate)


def run_pilot(task: TrainingTask, rows: Rows, *, steps: int, ctx: RunContext) -> Pilot:
    """Train for some steps and keep the weights; the task's model stays as it is.

    The first steps' examples must be among those of ``rows``: the others are not even read.
    Where the guard stops a pilot that is faster than the plan, it is repeated at the planned peak rate.
    """
    planned = len(task.order)
    steps = min(steps, planned)
    rate = pilot_rate(task.training, planned, steps)
    result = _attempt(task, rows, steps, rate, ctx)
    if result.report.predicted_stop and rate > task.training.learning_rate:
        ctx.log("the guard stopped a pilot that was faster than the plan: again, at the planned rate")
        result = _attempt(task, rows, steps, task.training.learning_rate, ctx)
    return result


def _attempt(task: TrainingTask, rows: Rows, steps: int, rate: float, ctx: RunContext) -> Pilot:
    training = dataclasses.replace(
        task.training, learning_rate=rate, schedule="constant", warmup=0.0, checkpoint_every=0, max_steps=None
    )
    examples = [task.examples[i] for i in rows.chosen]
    seeing = dataclasses.replace(task.guard, mode="off") if task.guard.mode == "none" else task.guard
    order = rows.order(task.order[:steps])
    # what is read on the topic is not simulated, and a pilot is too short for it
    short = dataclasses.replace(task, examples=examples, order=order, training=training, guard=seeing, topic=None)
    readings: list[PilotReading] = []

    def read(record: Mapping[str, Any], _total: int) -> None:
        readings.append(PilotReading(rate * record["step"], record.get("chosen_drop") or 0.0, record["guard"]))

    result = train(short, RunContext(callbacks=Callbacks(log=ctx.log, progress=ctx.progress, on_step=read)))
    policy = plain_policy(task.model, task.weights, task.training, packed=task.model.packs(rows.rows))
    starts = {name: _lora_a(layer).detach().clone() for name, layer in adapter_layers(policy.module).items()}
    moved = dict(result.model.module.named_parameters())
    with torch.no_grad():
        for name, parameter in trainable_parameters(policy.module):
            parameter.copy_(moved[name])
    guard_stop = result.guard_stop
    predicted_stop = (
        PredictedStop(step=_as_planned(task, rate, guard_stop.step or 0), reasons=guard_stop.reasons)
        if guard_stop
        else None
    )
    report = PilotReport(steps=steps, learning_rate=rate, predicted_stop=predicted_stop)
    return Pilot(policy, starts, report, tuple(readings))


def _lora_a(layer: Any) -> Tensor:
    weight: Tensor = layer.lora_A[ADAPTER].weight
    return weight


def _as_planned(task: TrainingTask, rate: float, step: int) -> int:
    """The step at which the planned run has come as far as the pilot at ``step``."""
    planned = len(task.order)
    for k in range(1, planned + 1):
        if distance(task.training, planned, k) >= rate * step:
            return k
    return planned
