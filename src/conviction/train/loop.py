"""The only training loop: order, step, guard, record, checkpoint.

Every weight-changing intervention comes through ``train``. Deterministic on a
CPU: a run that was killed and taken up again ends with the same weights and
the same ``steps.jsonl`` (which therefore holds no times).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from conviction.core.protocols import Message, Progress
from conviction.core.settings import flat
from conviction.models.hf import HFModel
from conviction.models.logprobs import last_positions
from conviction.train.batches import Encoded
from conviction.train.guard import Guard, Trip
from conviction.train.memory import available, estimate_step, kept_memory
from conviction.train.monitor import Monitor, Snapshot
from conviction.train.objectives import Objective, Preference, reach
from conviction.train.policy import Policy, make_policy, recompute_activations, trained
from conviction.train.record import append_record, numbers_of, peak_mb
from conviction.train.reference import prepare
from conviction.train.running import Running
from conviction.train.settings import Training, Weights
from conviction.train.sharding import blocks_to_shard, gathered, shard, wants_sharding
from conviction.train.step import Stepper, StepResult, rate_at
from conviction.train.tracking import finish_tracking, start_accelerator

__all__ = ["Outcome", "Task", "Trained", "Watch", "train"]


# A model that begins random has no health to lose: only what is not a number stops it.
NOTHING_TO_LOSE: dict[str, Any] = {"max_neutral_drop": 1e9, "max_entropy_drop": 1.0, "max_top_mass_drop": 1.0}


@dataclass(frozen=True, kw_only=True)
class Task:
    """All that one training run is.

    order          indices of the examples of each step
    begins_random  the model has learnt nothing yet: only numbers can break, there is no health to lose
    own            conversations of the training data, for greedy samples
    held_out       conversations that are not trained on, where entropy is read
    notes          what the user should know of it: which examples were left out
    """

    name: str
    model: HFModel
    examples: Sequence[Encoded]
    order: Sequence[tuple[int, ...]]
    objective: Objective
    weights: Weights
    training: Training
    guard: Guard
    own: Sequence[tuple[Message, ...]]
    held_out: Sequence[tuple[Message, ...]]
    begins_random: bool = False
    notes: tuple[str, ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """Every number that steers the run, by name."""
        objective = {k: v for k, v in vars(self.objective).items() if k not in {"pairs", "parameters"}}
        parameters = dict(getattr(self.objective, "parameters", {}))
        return {**objective, **parameters, **flat(self.weights), **flat(self.training), **flat(self.guard)}

    @property
    def scope(self) -> tuple[str, ...]:
        """What the untouched model's log-probs depend on besides the ids."""
        return (*self.model.scope(), self.training.precision, self.weights.tune)

    @cached_property
    def digest(self) -> str:
        """Tells runs apart: weights, settings and token ids. Computed once: it reads all of them."""
        text = json.dumps(
            [self.model.scope(), self.settings, [(e.prompt, e.answers) for e in self.examples], list(self.order)]
        )
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Watch:
    """Who is told what happens: notes, progress of a named stage, and every step's record."""

    say: Callable[[str], None] = lambda _: None
    bars: Callable[[str], Progress | None] = lambda _: None
    step: Callable[[Mapping[str, Any], int], None] = lambda _record, _total: None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended. passed: the first limits that a guard that is off let pass; peak_mb: of the process, in all."""

    steps: int
    total_steps: int
    trip: Trip | None
    seconds: float
    tokens: int
    peak_mb: int
    processes: int
    passed: tuple[str, ...]
    notes: tuple[str, ...]
    main_process: bool = True


@dataclass(frozen=True)
class Trained:
    """The moved model and how it got there."""

    model: HFModel
    outcome: Outcome
    settings: Mapping[str, Any]

    @property
    def trip(self) -> Trip | None:
        """Why the guard stopped it, if it did."""
        return self.outcome.trip


def train(task: Task, *, folder: Path | None = None, track: str | None = None, watch: Watch | None = None) -> Trained:
    """Run a task to its end, or to where the guard stops it; the model that comes back passed its last check.

    folder  for ``steps.jsonl`` and checkpoints; a run that was cut off there is taken up again
    track   an experiment tracker by accelerate's name: tensorboard, wandb, mlflow, trackio
    """
    watch = watch or Watch()
    accelerator = start_accelerator(task.model, track, folder, task.settings)
    main = accelerator.is_main_process
    watch = watch if main else Watch()
    run = _begin(task, accelerator, watch)
    start = run.take_up(folder, task.digest, watch.say) if folder is not None else 0
    with kept_memory() as return_memory:
        for step in range(start + 1, len(task.order) + 1):
            return_memory()
            if not _advance(run, task, step, folder, accelerator, watch):
                break
    finish_tracking(accelerator)
    moved = _in_one_piece(run, task) if wants_sharding() else run.monitor.model
    _settle(moved, task.model.dtype)
    outcome = Outcome(
        steps=run.steps,
        total_steps=len(task.order),
        trip=run.trip,
        seconds=run.seconds,
        tokens=run.tokens,
        peak_mb=peak_mb(accelerator.device),
        processes=accelerator.num_processes,
        passed=() if run.trip else run.passed,
        notes=tuple(run.notes),
        main_process=main,
    )
    return Trained(moved, outcome, task.settings)


def _advance(run: Running, task: Task, step: int, folder: Path | None, accelerator: Accelerator, watch: Watch) -> bool:
    """One step: move, judge, record, keep what is healthy. False: the guard stopped the run."""
    training, order, main = task.training, task.order, accelerator.is_main_process
    rate = rate_at(step, len(order), training)
    result = run.stepper.run(step, order[step - 1], rate)
    with run.stepper.policy.autocast(), gathered(run.stepper.policy):
        judged = run.monitor.check(
            step,
            loss=result.loss,
            grad_norm=result.grad_norm,
            margin=result.mean("margin"),
            chosen_drop=result.mean("chosen_drop"),
        )
    if judged.broken and not run.passed:
        run.passed = tuple(f"step {step}: {reason}" for reason in judged.broken)
    seen = sum(map(len, order[:step])) / len(task.examples)
    record = _record(step, seen, rate, result, run.monitor)
    run.steps, run.tokens = step, run.tokens + result.tokens
    if folder is not None and main:
        append_record(folder / "steps.jsonl", record)
    accelerator.log(numbers_of(record), step=step)
    watch.step(record, len(order))
    # one for all: the others would wait for ever
    verdicts = gather_object([(judged.zone == "stop", run.monitor.healthy_sample)])
    if any(stop for stop, _ in verdicts):
        _trip(run, task, step, judged.broken or judged.signs)
        return False
    if all(healthy for _, healthy in verdicts):
        run.healthy = Snapshot.of(step, trained(run.stepper.policy))
    if folder is not None and training.checkpoint_every and step % training.checkpoint_every == 0:
        run.save(folder, step, task.digest, write=main)
    return True


def _in_one_piece(run: Running, task: Task) -> HFModel:
    """The sharded model, made anew: what is returned must not need the other processes."""
    state = Snapshot.of(run.steps, trained(run.stepper.policy))
    policy = make_policy(task.model, task.weights, task.training)
    state.restore(trained(policy))
    model = run.monitor.model
    return HFModel(id=model.id, module=policy.module, tokenizer=model.tokenizer, check=model.check)


def _settle(moved: HFModel, dtype: torch.dtype) -> None:
    """Trained fp32 weights back in the dtype that the model was loaded in: what is saved is what is returned."""
    for name, parameter in trained(moved.module):
        if "lora_" not in name:
            parameter.data = parameter.data.to(dtype)
    moved.module.requires_grad_(False)
    moved.dtype = next(moved.module.parameters()).dtype


def _begin(task: Task, accelerator: Accelerator, watch: Watch) -> Running:
    began = time.monotonic()
    model, training, notes = task.model, task.training, []

    def say(text: str) -> None:
        notes.append(text)
        watch.say(text)

    policy = make_policy(model, task.weights, training)
    cut = blocks_to_shard(policy) if wants_sharding() and accelerator.num_processes > 1 else []
    budget = training.token_budget or model.token_budget
    single = accelerator.num_processes == 1
    prepared = prepare(
        policy,
        task.examples,
        scope=task.scope if task.objective.pairs else None,
        cache_mb=training.activation_cache_mb if single else 0,
        token_budget=budget,
        progress=watch.bars("reading the untouched model"),
    )
    if prepared.note:
        say(prepared.note)
    checkpointing = _choose_checkpointing(task, policy, budget, accelerator.device, say)
    if checkpointing:
        recompute_activations(policy)
    if cut:
        shard(cut, accelerator)
    optimizer = torch.optim.AdamW(
        [p for _, p in trained(policy)], lr=training.learning_rate, weight_decay=training.weight_decay
    )
    wrapped = policy
    if not wants_sharding():
        wrapped, optimizer = accelerator.prepare(policy, optimizer)
    moved = HFModel(id=f"{model.id}+{task.name}", module=policy.module, tokenizer=model.tokenizer, check=model.check)

    def logits(ids: torch.Tensor, mask: torch.Tensor, keep: int) -> torch.Tensor:
        with policy.autocast():
            last = last_positions(policy.module, keep, ids.shape[1])
            out = policy.module(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=last)
        found: torch.Tensor = out.logits
        return found

    guard = dataclasses.replace(task.guard, **NOTHING_TO_LOSE) if task.begins_random else task.guard
    with policy.autocast(), gathered(policy):
        monitor = Monitor.begin(guard, moved, logits, own=task.own, held_out=task.held_out, total_steps=len(task.order))
    if task.begins_random:
        monitor.prompts = ()  # its samples are noise, and begin so
    stepper = Stepper(
        accelerator, model, policy, wrapped, optimizer, task.examples, prepared, task.objective, training,
        budget, checkpointing, say,
    )  # fmt: skip
    return Running(stepper, monitor, Snapshot.of(0, trained(policy)), notes=notes, began=began)


def _choose_checkpointing(
    task: Task, policy: Policy, budget: int, device: torch.device, say: Callable[[str], None]
) -> bool:
    if task.training.checkpointing != "auto":
        return task.training.checkpointing == "on"
    config = policy.module.config.get_text_config()
    sizes = [len(e.prompt) + sum(e.counts) for e in task.examples]
    estimate = estimate_step(
        policy.module,
        tokens=max(*sizes, min(budget, max(sum(sizes[i] for i in step) for step in task.order))),
        layers=config.num_hidden_layers - policy.first,
        trained_parameters=sum(p.numel() for _, p in trained(policy)),
        dtype=task.model.dtype,
    )
    room = available(device)
    if estimate.total <= 0.9 * room:
        return False
    say(
        f"a step is estimated to take {estimate.total >> 20} MB, {room >> 20} MB are free: "
        "activations are recomputed in the backward pass (checkpointing=off turns this off)"
    )
    return True


def _record(step: int, epoch: float, rate: float, result: StepResult, monitor: Monitor) -> dict[str, Any]:
    """One line of ``steps.jsonl``. Log-probs in nats; *_mean and *_drop per token, margin_nats summed."""
    measures = [name for name in (result.rows[0] if result.rows else {}) if name not in {"id", "loss"}]
    return {
        "step": step,
        "epoch": round(epoch, 4),
        "learning_rate": rate,
        "loss": result.loss,
        "grad_norm": result.grad_norm,
        **{name: result.mean(name) for name in measures},
        "tokens": result.tokens,
        "applied": result.applied,
        "guard": monitor.record(),
        "rows": list(result.rows),
    }


def _trip(run: Running, task: Task, step: int, reasons: tuple[str, ...]) -> None:
    run.healthy.restore(trained(run.stepper.policy))
    text = ""
    if isinstance(task.objective, Preference):
        margin = run.monitor.history[-1].margin or 0.0
        text = reach(task.objective, run.stepper.prepared.reference, margin, task.guard.margin_cap)
    run.trip = Trip(step, run.healthy.step, reasons, text)
