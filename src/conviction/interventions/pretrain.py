"""Continued pretraining on documents, then optionally supervised fine-tuning, in one run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from conviction.core.context import RunContext
from conviction.core.options import fill_fields, flat_fields, setting
from conviction.core.protocols import LanguageModel
from conviction.data.training_data import TrainingData
from conviction.errors import InputError
from conviction.interventions.records import Outcome, PlaceboKind
from conviction.training.settings import Training, Weights

if TYPE_CHECKING:
    from conviction.training.loop import TrainingTask

__all__ = ["Pretrain"]


@flat_fields
@dataclass(frozen=True, kw_only=True)
class Pretrain:
    """Make documents likelier, every token of them, packed without padding; no text sees another."""

    name: ClassVar[str] = "pretrain"
    changes: ClassVar[str] = "weights (LoRA adapter, or all)"
    needs: ClassVar[str] = "documents"
    costs: ClassVar[str] = "a training run before; nothing at run time"
    trains: ClassVar[bool] = True
    forecastable: ClassVar[bool] = False
    cost_rank: ClassVar[int] = 80
    placebo: ClassVar[PlaceboKind | None] = "documents"

    piece_tokens: int = setting(512, "documents are cut into pieces of so many tokens", at_least=2)
    sft_epochs: int = setting(0, "epochs over the data's answers after the documents", at_least=0)
    weights: Weights = field(default_factory=Weights)
    training: Training = field(default_factory=lambda: Training(learning_rate=1e-4))

    def __init__(self, **fields: Any) -> None:
        fill_fields(self, fields)

    def apply(self, model: LanguageModel, data: TrainingData, ctx: RunContext | None = None) -> Outcome:
        """Train on the data's documents; the given model stays as it is."""
        from conviction.interventions.training_run import run_training

        ctx = ctx or RunContext()
        return run_training(self, self.task(model, data, ctx), data, ctx)

    def task(self, model: LanguageModel, data: TrainingData, ctx: RunContext | None = None) -> TrainingTask:
        """The training run that ``apply`` carries out, and a forecast foresees.

        Raises InputError if the data has no documents.
        """
        from conviction.interventions.training_run import as_task, fit, with_weights
        from conviction.training.batches import encode_documents, encode_examples, step_order
        from conviction.training.objectives import Likelihood

        if not data.documents:
            raise InputError(f"{data.name} holds no documents", hint="give a .txt file, or rows with a text")
        loaded, ctx = with_weights(model, self.name), ctx or RunContext()
        limits = (self.piece_tokens, self.training.max_length, loaded.encoder.context_length)
        room = min(n for n in limits if n is not None)
        pieces, notes = fit(loaded, encode_documents(loaded.encoder, data.documents, room), self.training, ctx)
        order = step_order(len(pieces), self.training)
        if self.sft_epochs and data.answers:
            answers, more = fit(loaded, encode_examples(loaded.encoder, data.answers), self.training, ctx)
            later = step_order(len(answers), dataclasses.replace(self.training, epochs=self.sft_epochs))
            order += [tuple(len(pieces) + i for i in step) for step in later]
            pieces, notes = pieces + answers, notes + more
        order = order[: self.training.max_steps]
        return as_task(
            self,
            loaded,
            data,
            pieces,
            order,
            Likelihood(),
            weights=self.weights,
            training=self.training,
            guard=ctx.guard,
            notes=notes,
        )
