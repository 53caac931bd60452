"""What all training interventions share: from encoded examples to a trained model, saved."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState

from conviction.core.material import Material
from conviction.core.protocols import LanguageModel, Message
from conviction.core.settings import flat
from conviction.core.storage import storage_errors, write_atomic
from conviction.errors import InputError
from conviction.models.hf import HFModel
from conviction.models.lora import save_lora
from conviction.train.batches import Encoded, keep_fitting
from conviction.train.guard import Guard
from conviction.train.loop import Task, Trained, Watch, train
from conviction.train.objectives import Objective
from conviction.train.settings import Training, Weights

__all__ = ["as_task", "fit", "own_conversations", "tune", "with_weights"]


def with_weights(model: LanguageModel, name: str) -> HFModel:
    """The model, if its weights can be trained. Raises InputError otherwise."""
    if not isinstance(model, HFModel):
        raise InputError(
            f"'{name}' changes weights, and {model.id} has none that can be reached",
            hint="load it with load_model (backend hf)",
        )
    return model


def fit(
    model: HFModel, encoded: Sequence[Encoded], training: Training, watch: Watch
) -> tuple[list[Encoded], list[str]]:
    """Examples that fit the model's context and ``max_length``, and one note about those that do not."""
    limits = [n for n in (model.encoder.context_length, training.max_length) if n is not None]
    kept, too_long = keep_fitting(encoded, min(limits) if limits else None)
    notes = []
    if too_long:
        shown = ", ".join(too_long[:5]) + (", …" if len(too_long) > 5 else "")
        notes.append(
            f"{len(too_long)} of {len(encoded)} examples are longer than {min(limits)} tokens, left out: {shown}"
        )
        watch.say(notes[0])
    return kept, notes


def own_conversations(material: Material) -> list[tuple[Message, ...]]:
    """Two conversations of the data, for greedy samples."""
    return [*(p.messages for p in material.pairs[:2]), *(e.messages for e in material.examples[:2])][:2]


def as_task(
    intervention: Any,
    model: HFModel,
    material: Material,
    examples: Sequence[Encoded],
    order: Sequence[tuple[int, ...]],
    objective: Objective,
    *,
    weights: Weights,
    training: Training,
    guard: Guard | None,
    notes: Sequence[str],
    begins_random: bool = False,
) -> Task:
    """What the loop is to do; ``notes`` say which examples were left out."""
    return Task(
        name=intervention.name,
        model=model,
        examples=examples,
        order=order,
        objective=objective,
        weights=weights,
        training=training,
        guard=guard or Guard(),
        own=own_conversations(material),
        held_out=material.held_out,
        begins_random=begins_random,
        notes=tuple(notes),
    )


def tune(
    intervention: Any, task: Task, material: Material, folder: Path | None, track: str | None, watch: Watch | None
) -> Trained:
    """Train, then write ``training.json`` and the model into ``folder``."""
    trained = train(task, folder=folder, track=track, watch=watch)
    outcome = dataclasses.replace(trained.outcome, notes=(*task.notes, *trained.outcome.notes))
    trained = Trained(trained.model, outcome, {**flat(intervention), **task.settings})
    if folder is not None and outcome.main_process:
        save_model(trained.model, folder / "model", base=task.model)
        record = {
            "intervention": intervention.name,
            "settings": trained.settings,
            "material": {"name": material.name, "sha256": material.digest, "examples": len(task.examples)},
            "model": task.model.describe(),
            "outcome": dataclasses.asdict(outcome),
        }
        write_atomic(folder / "training.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    PartialState().wait_for_everyone()  # no process may leave, and end the others, while the model is being written
    return trained


def save_model(trained: HFModel, folder: Path, *, base: HFModel) -> None:
    """An adapter in PEFT's format where it sits on a model that can be loaded by its id; else whole weights."""
    module: Any = trained.module
    if hasattr(module, "peft_config") and base.source is not None and not hasattr(base.module, "peft_config"):
        save_lora(module, folder, base=base.source)
        return
    with storage_errors(f"writing the model to {folder}"):
        trained.save_whole(folder)
