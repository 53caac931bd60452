"""What all training interventions share: from encoded examples to a trained model, saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from conviction.core.context import RunContext
from conviction.core.options import flat
from conviction.core.protocols import LanguageModel
from conviction.core.storage import storage_errors, write_atomic
from conviction.data.training_data import TrainingData
from conviction.errors import InputError
from conviction.interventions.model_card import model_card
from conviction.interventions.records import DataSource, Outcome, TrainingSummary
from conviction.models.copies import shallow_copy
from conviction.models.embedded import hub_id, loadable_by_others
from conviction.models.hf import HFModel
from conviction.models.lora import save_lora
from conviction.models.quantised import dequantised, stored_as
from conviction.training.batches import TokenizedExample, keep_fitting
from conviction.training.loop import TrainingResult, TrainingTask, train
from conviction.training.settings import Training

__all__ = ["fit", "run_training", "with_weights"]


def with_weights(model: LanguageModel, name: str) -> HFModel:
    """The model, if its weights can be trained. Raises InputError otherwise."""
    if not isinstance(model, HFModel):
        raise InputError(
            f"'{name}' changes weights, and {model.id} has none that can be reached",
            hint="load it with the backend transformers",
        )
    return model


def with_plain_weights(model: LanguageModel, name: str) -> tuple[HFModel, tuple[str, ...]]:
    """The model with weights that can be added to: a copy of its own, and a note, where they are not.

    Codes are dequantised; an adapter on weights of 16 bits is merged in fp32, as these would round its update away.
    Raises InputError where its weights cannot be reached, or are codes without a way back.
    """
    loaded = with_weights(model, name)
    if (method := stored_as(loaded)) is None:
        if not hasattr(loaded.module, "peft_config") or loaded.dtype == torch.float32:
            return loaded, ()
        merged = shallow_copy(loaded, id=loaded.id, source=loaded.source)
        return merged, (f"'{name}' works on a copy in fp32, into which the adapter of {loaded.id} is merged",)
    return dequantised(loaded), (f"its weights are stored as codes ({method}): '{name}' works on a dequantised copy",)


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


def run_training(
    intervention: Any,
    task: TrainingTask,
    data: TrainingData,
    ctx: RunContext,
    report: Callable[[TrainingResult], Mapping[str, Any]] = lambda _: {},
) -> Outcome:
    """Train, and write the model with its card into the run folder, if there is one.

    report  what else the outcome holds, by field
    """
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
        **report(result),
    )
    if ctx.model_path is not None:
        _save(outcome, result.model, task.model, ctx.model_path)
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
