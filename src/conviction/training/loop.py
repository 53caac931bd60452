"""The only training loop: order, step, guard, record, checkpoint.

Every weight-changing intervention comes through ``train``. Deterministic on a
CPU: a run that was killed and taken up again ends with the same weights and
the same ``steps.jsonl`` (which therefore holds no times).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from conviction.core.context import Callbacks, RunContext
from conviction.core.options import flat
from conviction.core.protocols import Message
from conviction.data.topic import Topic
from conviction.models.engine.logprobs import last_positions
from conviction.models.engine.torch_engine import TorchEngine
from conviction.models.hf import HFModel
from conviction.training.batches import TokenizedExample
from conviction.training.drift import Logits
from conviction.training.guard import Guard, GuardStop
from conviction.training.kept import KeptStates
from conviction.training.memory import available, estimate_step, kept_memory
from conviction.training.monitor import GuardMonitor, Snapshot
from conviction.training.objectives import Objective, Preference, explain_flip_margin
from conviction.training.policy import Policy, make_policy, recompute_activations, trainable_parameters
from conviction.training.reference import precompute_reference
from conviction.training.resources import peak_mb
from conviction.training.settings import Training, Weights
from conviction.training.sharding import blocks_to_shard, gathered, shard, wants_sharding
from conviction.training.state import TrainState
from conviction.training.step import Stepper, StepResult, rate_at
from conviction.training.teacher import TeacherPrompts, TeacherScores, compute_teacher
from conviction.training.tracking import finish_tracking, numbers_of, start_accelerator
from conviction.training.untrained import check_untrained


@dataclass(frozen=True, kw_only=True)
class TrainingTask:
    """All that one training run is.

    order          indices of the examples of each step
    begins_random  the model has learnt nothing yet: there is no health to lose
    own            conversations of the training data, for greedy samples
    held_out       conversations that are not trained on, where entropy is read
    topic          what it is about, whose train split the guard reads; None: nothing that is known
    notes          what the user should know of it: which examples were left out
    teacher        what a teacher reads before the answers; None: answers themselves are learned
    """

    name: str
    model: HFModel
    examples: Sequence[TokenizedExample]
    order: Sequence[tuple[int, ...]]
    objective: Objective
    weights: Weights
    training: Training
    guard: Guard
    own: Sequence[tuple[Message, ...]]
    held_out: Sequence[tuple[Message, ...]]
    begins_random: bool = False
    topic: Topic | None = None
    notes: tuple[str, ...] = ()
    teacher: TeacherPrompts | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Every number that steers the run, by name."""
        objective = {k: v for k, v in vars(self.objective).items() if k not in {"pairs", "parameters"}}
        parameters = dict(getattr(self.objective, "parameters", {}))
        return {**objective, **parameters, **flat(self.weights), **flat(self.training), **flat(self.guard)}

    @cached_property
    def packed(self) -> bool:
        """Whether the model lets all examples share packs."""
        return self.model.packs((e.prompt, answer) for e in self.examples for answer in e.answers)

    @property
    def step_tokens(self) -> float:
        """Tokens of a step on average, as a step computes them: prompts once for all answers."""
        sizes = [len(e.prompt) + sum(e.counts) for e in self.examples]
        return sum(sizes[i] for step in self.order for i in step) / max(1, len(self.order))

    @property
    def scope(self) -> tuple[str, ...]:
        """What the untouched model's log-probs depend on besides the ids."""
        return (*self.model.scope(), self.training.precision, self.weights.tune)

    @cached_property
    def digest(self) -> str:
        """Tells runs apart: weights, settings and token ids. Computed once: it reads all of them."""
        topic = None if self.topic is None else [self.topic.digest, self.topic.target]
        examples = [(e.prompt, e.answers) for e in self.examples]
        text = json.dumps([self.model.scope(), self.settings, examples, list(self.order), topic])
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """The changed model and how the run ended.

    limits_passed  the first limits that a guard that is off let pass
    peak_mb        the most memory that the process has held
    teacher        what the teacher made of the examples that it read with another prompt, by index
    """

    model: HFModel
    steps: int
    total_steps: int
    guard_stop: GuardStop | None
    seconds: float
    tokens: int
    peak_mb: int
    processes: int
    limits_passed: tuple[str, ...]
    notes: tuple[str, ...]
    teacher: Mapping[int, TeacherScores]


def train(task: TrainingTask, ctx: RunContext) -> TrainingResult:
    """Run a task to its end, or to where the guard stops it; the model that comes back passed its last check.

    ctx  its run holds ``steps.jsonl`` and checkpoints: a run that was cut off there is continued

    Raises BudgetSpent, after a checkpoint, where the time of ``ctx`` is over before the last step.
    """
    accelerator = start_accelerator(task.model, ctx, task.settings)
    main = accelerator.is_main_process
    ctx = ctx if main else replace(ctx, callbacks=Callbacks())
    state = _begin(task, accelerator, ctx)
    start = state.resume(ctx.run, task.digest, ctx.log) if ctx.run is not None else 0
    with kept_memory() as return_memory:
        for step in range(start + 1, len(task.order) + 1):
            return_memory()
            if not _advance(state, task, step, accelerator, ctx):
                break
    finish_tracking(accelerator)
    moved = _in_one_piece(state, task) if wants_sharding() else state.monitor.model
    _settle(moved, task.model.dtype)
    return TrainingResult(
        model=moved,
        steps=state.steps,
        total_steps=len(task.order),
        guard_stop=state.guard_stop,
        seconds=state.seconds,
        tokens=state.tokens,
        peak_mb=peak_mb(accelerator.device),
        processes=accelerator.num_processes,
        limits_passed=() if state.guard_stop else state.limits_passed,
        notes=(*task.notes, *state.notes),
        teacher={} if state.stepper.teacher is None else state.stepper.teacher.scores,
    )


def _advance(state: TrainState, task: TrainingTask, step: int, accelerator: Accelerator, ctx: RunContext) -> bool:
    """One step: move, judge, record, keep what is healthy. False: the guard stopped the run."""
    training, order, main = task.training, task.order, accelerator.is_main_process
    rate = rate_at(step, len(order), training)
    result = state.stepper.run(step, order[step - 1], rate)
    with state.stepper.policy.autocast(), gathered(state.stepper.policy):
        verdict = state.monitor.check(
            step,
            loss=result.loss,
            grad_norm=result.grad_norm,
            margin=result.mean("margin"),
            chosen_drop=result.mean("chosen_drop"),
        )
    if verdict.violations and not state.limits_passed:
        state.limits_passed = tuple(f"step {step}: {reason}" for reason in verdict.violations)
    seen = sum(map(len, order[:step])) / len(task.examples)
    record = _record(step, seen, rate, result, state.monitor)
    state.steps, state.tokens = step, state.tokens + result.tokens
    if ctx.run is not None and main:
        ctx.run.append_step(record)
    accelerator.log(numbers_of(record), step=step)
    ctx.on_step(record, len(order))
    # one for all: the others would wait for ever
    verdicts = gather_object([(verdict.zone == "stop", state.monitor.healthy_sample)])
    if any(stop for stop, _ in verdicts):
        _stop(state, task, step, verdict.violations or verdict.warnings)
        return False
    if all(healthy for _, healthy in verdicts):
        state.keep(step)
    if ctx.callbacks.on_model is not None and accelerator.num_processes == 1:  # gathering a sharded model takes all
        with state.stepper.policy.autocast():
            ctx.callbacks.on_model(step, len(order), state.monitor.model)
    # Of several processes one might find the time over before another, which would wait for it for ever.
    spent = ctx.budget is not None and ctx.budget.spent and accelerator.num_processes == 1 and step < len(order)
    if ctx.run is not None and training.checkpoint_every and (spent or step % training.checkpoint_every == 0):
        state.save(ctx.run, step, task.digest, write=main)
    if spent:
        ctx.check_budget()
    return True


def _in_one_piece(state: TrainState, task: TrainingTask) -> HFModel:
    """The sharded model, made anew: what is returned must not need the other processes."""
    snapshot = Snapshot.of(state.steps, trainable_parameters(state.stepper.policy))
    policy = make_policy(task.model, task.weights, task.training, packed=task.packed)
    snapshot.restore(trainable_parameters(policy))
    model = state.monitor.model
    return HFModel(id=model.id, engine=TorchEngine(policy.module, model.tokenizer), check=model.check)


def _settle(moved: HFModel, dtype: torch.dtype) -> None:
    """Trained fp32 weights back in the dtype that the model was loaded in: what is saved is what is returned."""
    for name, parameter in trainable_parameters(moved.module):
        if "lora_" not in name:
            parameter.data = parameter.data.to(dtype)
    moved.module.requires_grad_(False)


def _begin(task: TrainingTask, accelerator: Accelerator, ctx: RunContext) -> TrainState:
    began = time.monotonic()
    model, training, notes = task.model, task.training, []

    def log(text: str) -> None:
        notes.append(text)
        ctx.log(text)

    policy = make_policy(model, task.weights, training, packed=task.packed)
    cut = blocks_to_shard(policy) if wants_sharding() and accelerator.num_processes > 1 else []
    budget = training.token_budget or model.engine.token_budget
    if note := check_untrained(policy, model, task.examples, budget):
        log(note)
    single = accelerator.num_processes == 1
    prepared = precompute_reference(
        policy,
        task.examples,
        order=task.order,
        scope=task.scope if task.objective.pairs else None,
        cache_mb=training.activation_cache_mb if single else 0,
        token_budget=budget,
        progress=ctx.progress("reading the untouched model"),
    )
    if prepared.note:
        log(prepared.note)
    teacher = None
    if task.teacher is not None:
        reading = ctx.progress("reading the teacher")
        teacher = compute_teacher(policy, model, task.examples, task.teacher, token_budget=budget, progress=reading)
    checkpointing = _choose_checkpointing(task, policy, budget, accelerator.device, log)
    if checkpointing:
        recompute_activations(policy)
    if cut:
        shard(cut, accelerator)
    optimizer = torch.optim.AdamW(
        [p for _, p in trainable_parameters(policy)], lr=training.learning_rate, weight_decay=training.weight_decay
    )
    wrapped = policy
    if not wants_sharding():
        wrapped, optimizer = accelerator.prepare(policy, optimizer)
    moved = HFModel(id=f"{model.id}+{task.name}", engine=TorchEngine(policy.module, model.tokenizer), check=model.check)

    monitor = _begin_monitor(task, policy, moved, ctx.doses)
    for note in monitor.notes:
        log(note)
    stepper = Stepper(
        accelerator, model, policy, wrapped, optimizer, task.examples, prepared, task.objective, training,
        budget, checkpointing, log, teacher,
    )  # fmt: skip
    kept = KeptStates(Snapshot.of(0, trainable_parameters(policy)))
    return TrainState(stepper, monitor, kept, notes=notes, began=began)


def _begin_monitor(task: TrainingTask, policy: Policy, moved: HFModel, doses: int) -> GuardMonitor:
    with policy.autocast(), gathered(policy):
        return GuardMonitor.begin(
            task.guard,
            moved,
            _logits(policy),
            own=task.own,
            held_out=task.held_out,
            total_steps=len(task.order),
            begins_random=task.begins_random,
            topic=task.topic,
            step_tokens=task.step_tokens,
            doses=doses,
            scope=None if task.begins_random or task.model.cache_scope() is None else task.scope,
        )


def _logits(policy: Policy) -> Logits:
    """As the policy computes."""

    def read(ids: torch.Tensor, mask: torch.Tensor, keep: int) -> torch.Tensor:
        with policy.autocast():
            last = last_positions(policy.module, keep, ids.shape[1])
            out = policy.module(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=last)
        rows: torch.Tensor = out.logits
        return rows

    return read


def _choose_checkpointing(
    task: TrainingTask, policy: Policy, budget: int, device: torch.device, log: Callable[[str], None]
) -> bool:
    if task.training.checkpointing != "auto":
        return task.training.checkpointing == "on"
    config = policy.module.config.get_text_config()
    sizes = [len(e.prompt) + sum(e.counts) for e in task.examples]
    estimate = estimate_step(
        policy.module,
        tokens=max(*sizes, min(budget, max(sum(sizes[i] for i in step) for step in task.order))),
        layers=config.num_hidden_layers - policy.first,
        trained_parameters=sum(p.numel() for _, p in trainable_parameters(policy)),
        dtype=task.model.dtype,
    )
    room = available(device)
    if estimate.total <= 0.9 * room:
        return False
    log(
        f"a step is estimated to take {estimate.total >> 20} MB, {room >> 20} MB are free: "
        "activations are recomputed in the backward pass (checkpointing=off turns this off)"
    )
    return True


def _record(step: int, epoch: float, rate: float, result: StepResult, monitor: GuardMonitor) -> dict[str, Any]:
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


def _stop(state: TrainState, task: TrainingTask, step: int, reasons: tuple[str, ...]) -> None:
    state.give_back()
    text = ""
    if isinstance(task.objective, Preference):
        margin = state.monitor.history[-1].margin or 0.0
        text = explain_flip_margin(task.objective, state.stepper.prepared.reference, margin, task.guard.margin_cap)
    state.guard_stop = GuardStop(reasons=reasons, step=step, restored_step=state.kept.healthy.step, flip_margin=text)
