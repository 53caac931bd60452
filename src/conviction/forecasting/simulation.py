"""What is measured once, and every setting is simulated on: the pilot, and a gradient for every answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from conviction.core.protocols import Progress
from conviction.errors import ModelError
from conviction.forecasting.expectations import Utilisation, expected_flips, guard_on, pair_forecasts, step_forecasts
from conviction.forecasting.gradients import Layers, Row, take_gradients
from conviction.forecasting.kernel import Kernel, Plan, Trajectory, simulate
from conviction.forecasting.pilot import Pilot, PilotReading
from conviction.forecasting.records import Flips, PairForecast, PilotReport, StepForecast
from conviction.forecasting.rows import HeldOutPair, Rows
from conviction.models.engine.packing import pack_whole
from conviction.training.batches import TokenizedExample
from conviction.training.guard import Guard
from conviction.training.loop import TrainingTask
from conviction.training.memory import available, estimate_step
from conviction.training.policy import Policy, make_policy, plain_policy, sum_answers, trainable_parameters
from conviction.training.reference import precompute_reference

__all__ = ["Linearization", "SimulatedRun", "compare_pilot", "linearize", "read_reference", "simulate_run"]

PER_MATRIX = 256  # coordinates of each A and B: sums are then off by 2-9 % (benchmarks/results/forecast_battery.json)
LEAST_PER_MATRIX = 16
MEMORY_SHARE = 0.25  # of what is free
PASS_TOKENS = 768
READINGS = 12


@dataclass(frozen=True)
class Linearization:
    """Everything that a simulation needs."""

    kernel: Kernel
    rows: Rows
    asked: Sequence[HeldOutPair]
    guard: Guard
    pilot: Sequence[PilotReading]

    @property
    def pairs(self) -> Tensor | None:
        """[n, 2] rows of the trained pairs; None where examples have one answer."""
        return self.rows.examples if self.rows.examples.shape[1] == 2 else None


@dataclass(frozen=True)
class SimulatedRun:
    """A simulated run, read."""

    run: Trajectory
    guard_utilisation: Utilisation
    pair_forecasts: tuple[PairForecast, ...]
    flips: Flips | None
    step_forecasts: tuple[StepForecast, ...]


def read_reference(task: TrainingTask, chosen: Sequence[int], progress: Progress | None) -> Sequence[Sequence[float]]:
    """The untouched model's log-prob of each answer of some examples: from, and for, the cache that training reads."""
    prepared = precompute_reference(
        make_policy(task.model, task.weights, task.training, packed=task.packed),
        [task.examples[i] for i in chosen],
        order=task.order if list(chosen) == list(range(len(task.examples))) else (),
        scope=task.scope,
        cache_mb=0,
        token_budget=task.training.token_budget or task.model.engine.token_budget,
        progress=progress,
    )
    return prepared.reference


def linearize(
    task: TrainingTask,
    rows: Rows,
    asked: Sequence[HeldOutPair],
    pilot: Pilot,
    reference: Sequence[Sequence[float]],
    guard: Guard,
    progress: Progress | None,
) -> Linearization:
    """Take the gradients at the pilot's end.

    reference  per chosen example the log-prob of each answer under the untouched model, nats

    Raises ModelError if not even the smallest sample of them fits in memory.
    """
    per_matrix = _affordable(pilot.policy, len(rows.rows))
    layers = Layers.draw(pilot.policy.module, pilot.starts, per_matrix=per_matrix)
    budget = _pass_tokens(task, rows.rows)
    base = _base(task, rows, reference, budget)
    gradients = take_gradients(pilot.policy, layers, rows.rows, token_budget=budget, progress=progress)
    counts = torch.tensor([len(answer) for _, answer in rows.rows])
    return Linearization(Kernel(gradients, base, counts), rows, asked, guard, pilot.readings)


def simulate_run(linearization: Linearization, task: TrainingTask) -> SimulatedRun:
    """Simulate a task: that of the scene, or one with other settings."""
    kernel, rows, total = linearization.kernel, linearization.rows, len(task.order)
    read = sorted({max(1, round(total * k / READINGS)) for k in range(1, READINGS + 1)})
    plan = Plan(rows.examples, rows.order(task.order), task.objective, task.training)
    run = simulate(kernel, plan, watched=rows.neutral, read_after=read)
    names = [task.examples[i].id for i in rows.chosen]
    result = pair_forecasts(kernel, rows, names, linearization.asked, run.moved[total])
    return SimulatedRun(
        run=run,
        guard_utilisation=guard_on(run.steps, kernel, rows, linearization.guard, linearization.pilot, task.training),
        pair_forecasts=result,
        flips=expected_flips(result),
        step_forecasts=step_forecasts(kernel, rows, linearization.asked, run),
    )


def compare_pilot(report: PilotReport, linearization: Linearization, task: TrainingTask) -> PilotReport:
    """The pilot's report with what a simulation of the pilot itself says: how far to trust the rest."""
    if linearization.pairs is None or report.predicted_stop is not None:
        return report
    training = dataclasses.replace(
        task.training, learning_rate=report.learning_rate, schedule="constant", warmup=0.0, max_steps=None
    )
    order = task.order[: report.steps]
    plan = Plan(linearization.rows.examples, linearization.rows.order(order), task.objective, training)
    run = simulate(linearization.kernel, plan, watched=linearization.rows.neutral, read_after=[len(order)])

    def apart(moved: Tensor) -> NDArray[np.float64]:
        return (moved[linearization.pairs[:, 0]] - moved[linearization.pairs[:, 1]]).double().numpy()  # type: ignore[index]

    real, simulated = (
        apart(linearization.kernel.gradients.sums - linearization.kernel.base),
        apart(run.moved[len(order)]),
    )
    varied = len(real) > 1 and real.std() > 0 and simulated.std() > 0
    return report.model_copy(
        update={
            "moved": (float(real.mean()), float(simulated.mean())),
            "correlation": float(np.corrcoef(real, simulated)[0, 1]) if varied else None,
        }
    )


def _affordable(policy: Policy, rows: int) -> int:
    """Coordinates of each matrix so that the gradients take no more than a share of what is free."""
    matrices = sum("lora_" in name for name, _ in trainable_parameters(policy))
    each = rows * matrices * 3  # bytes for one coordinate of every matrix: b₀, b₁ and a₁, of two matrices, in bf16
    room = int(MEMORY_SHARE * available(torch.device("cpu")))
    count = min(PER_MATRIX, room // each)
    if count < LEAST_PER_MATRIX:
        raise ModelError(
            f"gradients of {rows} answers take {LEAST_PER_MATRIX * each >> 20} MB or more; {room >> 20} MB are free",
            hint="give fewer examples to the forecast, or adapt fewer layers (num_layers, target_modules)",
        )
    return count


def _pass_tokens(task: TrainingTask, rows: Sequence[Row]) -> int:
    """Tokens in one pass: fewer where memory is short, never fewer than the longest row has."""
    module = task.model.module
    longest = max(len(prompt) + len(answer) for prompt, answer in rows)
    layers = module.config.get_text_config().num_hidden_layers
    need = estimate_step(module, tokens=PASS_TOKENS, layers=layers, trained_parameters=0, dtype=task.model.dtype)
    share = min(1.0, 0.5 * available(task.model.device) / max(1, need.total))
    return max(longest, int(PASS_TOKENS * share))


@torch.no_grad()
def _base(task: TrainingTask, rows: Rows, reference: Sequence[Sequence[float]], budget: int) -> Tensor:
    """[N] log-probs under the untouched model: of trained answers known already, of the others computed."""
    values = torch.full((len(rows.rows),), torch.nan)
    values[rows.examples] = torch.tensor(reference)
    missing = torch.isnan(values).nonzero()[:, 0].tolist()
    packed = task.model.packs(rows.rows[i] for i in missing)
    policy = plain_policy(task.model, task.weights, task.training, packed=packed)
    asked = [TokenizedExample("", prompt, (answer,)) for prompt, answer in (rows.rows[i] for i in missing)]
    packs = pack_whole([(e.prompt, e.answers) for e in asked], token_budget=budget if policy.packed else 1)
    for pack, members in packs:
        sums = sum_answers(policy(pack), pack, [asked[k] for k in members])[:, 0]
        values[torch.tensor([missing[k] for k in members])] = sums.float().cpu()
    return values
