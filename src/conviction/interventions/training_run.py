"""What all training interventions share: from encoded examples to a trained model, saved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState

from conviction.core.context import RunContext
from conviction.core.options import flat
from conviction.core.protocols import LanguageModel, Message
from conviction.core.storage import storage_errors, write_atomic
from conviction.data.training_data import TrainingData
from conviction.errors import InputError
from conviction.interventions.model_card import model_card
from conviction.interventions.records import DataSource, Outcome, TrainingSummary
from conviction.models.embedded import hub_id, loadable_by_others
from conviction.models.hf import HFModel
from conviction.models.lora import save_lora
from conviction.models.prompted import system_notes
from conviction.training.batches import TokenizedExample, keep_fitting
from conviction.training.guard import Guard
from conviction.training.loop import TrainingResult, TrainingTask, train
from conviction.training.objectives import Objective
from conviction.training.settings import Training, Weights

__all__ = ["as_task", "fit", "own_conversations", "run_training", "with_weights"]


def with_weights(model: LanguageModel, name: str) -> HFModel:
    """The model, if its weights can be trained. Raises InputError otherwise."""
    if not isinstance(model, HFModel):
        raise InputError(
            f"'{name}' changes weights, and {model.id} has none that can be reached",
            hint="load it with the backend transformers",
        )
    return model


def fit(
    model: HFModel, encoded: Sequence[TokenizedExample], training: Training, ctx: RunContext
) -> tuple[list[TokenizedExample], list[str]]:
    """Examples that fit the model's context and ``max_length``, and one note about those that do not."""
    limits = [n for n in (model.encoder.context_length, training.max_length) if n is not None]
    kept, too_long = keep_fitting(encoded, min(limits) if limits else None)
    notes = []
    if too_long:
        shown = ", ".join(too_long[:5]) + (", …" if len(too_long) > 5 else "")
        notes.append(
            f"{len(too_long)} of {len(encoded)} examples are longer than {min(limits)} tokens, left out: {shown}"
        )
        ctx.log(notes[0])
    return kept, notes


def own_conversations(data: TrainingData) -> list[tuple[Message, ...]]:
    """Two conversations of the data, for greedy samples."""
    return [*(p.messages for p in data.pairs[:2]), *(e.messages for e in data.examples[:2])][:2]


def as_task(
    intervention: Any,
    model: HFModel,
    data: TrainingData,
    examples: Sequence[TokenizedExample],
    order: Sequence[tuple[int, ...]],
    objective: Objective,
    *,
    weights: Weights,
    training: Training,
    guard: Guard | None,
    notes: Sequence[str],
    begins_random: bool = False,
) -> TrainingTask:
    """What the loop is to do; ``notes`` say which examples were left out."""
    conversations = [*(pair.messages for pair in data.pairs), *(example.messages for example in data.examples)]
    if any(message.role == "system" for messages in conversations for message in messages):
        notes = (*notes, *system_notes(model))
    return TrainingTask(
        name=intervention.name,
        model=model,
        examples=examples,
        order=order,
        objective=objective,
        weights=weights,
        training=training,
        guard=guard or Guard(),
        own=own_conversations(data),
        held_out=data.held_out,
        begins_random=begins_random,
        notes=tuple(notes),
    )


def run_training(intervention: Any, task: TrainingTask, data: TrainingData, ctx: RunContext) -> Outcome:
    """Train, and write the model with its card into the run folder, if there is one."""
    result = train(task, ctx)
    outcome = Outcome(
        intervention=intervention.name,
        verdict=_verdict(result, unguarded=task.guard.mode == "none"),
        settings={**flat(intervention), **task.settings},
        data=DataSource(name=data.name, sha256=data.digest, examples=len(task.examples)),
        base=task.model.describe(),
        guard_stop=result.guard_stop,
        training=TrainingSummary(
            steps=result.steps,
            total_steps=result.total_steps,
            tokens=result.tokens,
            processes=result.processes,
            limits_passed=result.limits_passed,
        ),
        notes=result.notes,
        seconds=result.seconds,
        peak_mb=result.peak_mb,
        model=result.model,
    )
    if ctx.run is not None and result.main_process:
        _save(outcome, result.model, task.model, ctx.run.model_path)
    PartialState().wait_for_everyone()  # no process may leave, and end the others, while the model is being written
    return outcome


def _verdict(result: TrainingResult, *, unguarded: bool) -> str:
    if result.guard_stop:
        return "stopped by the guard"
    if unguarded:
        return "to the end; whether in health was not read, the guard was set to none"
    return "to the end, with limits passed: the guard was off" if result.limits_passed else "healthy to the end"


def _save(outcome: Outcome, trained: HFModel, base: HFModel, folder: Path) -> None:
    """An adapter in PEFT's format where it sits on a model that can be loaded by name; else whole weights; its card."""
    module: Any = trained.module
    adapter = hasattr(module, "peft_config") and base.source is not None and not hasattr(base.module, "peft_config")
    if adapter:
        save_lora(module, folder, base=loadable_by_others(str(base.source)))
    with storage_errors(f"writing the model to {folder}"):
        if adapter:
            base.tokenizer.save_pretrained(str(folder))
        else:
            trained.save_whole(folder)
    known_as = hub_id(base.source) if base.source is not None else base.id
    write_atomic(folder / "README.md", model_card(outcome, base=known_as, adapter=adapter))
