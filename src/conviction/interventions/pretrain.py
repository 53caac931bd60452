"""Continued pretraining on documents, then optionally supervised fine-tuning, in one run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from conviction.core.context import RunContext
from conviction.core.options import fill_fields, flat_fields, setting
from conviction.data.training_data import TrainingData
from conviction.errors import InputError
from conviction.interventions.records import PlaceboKind, SearchSpace
from conviction.interventions.trained import Prepared, apply_training, documents_then_answers, training_task
from conviction.training.settings import Training, Weights

if TYPE_CHECKING:
    from conviction.models.hf import HFModel

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
    search: ClassVar[SearchSpace] = {"learning_rate": (5e-4, 1.5e-4, 5e-5)}

    piece_tokens: int = setting(512, "documents are cut into pieces of so many tokens", at_least=2)
    sft_epochs: int = setting(0, "epochs over the data's answers after the documents", at_least=0)
    weights: Weights = field(default_factory=Weights)
    training: Training = field(default_factory=lambda: Training(learning_rate=1e-4))

    def __init__(self, **fields: Any) -> None:
        fill_fields(self, fields)

    apply = apply_training
    task = training_task

    def prepare(self, model: HFModel, data: TrainingData, ctx: RunContext) -> Prepared:
        """The data's documents, and its answers after them. Raises InputError if it has no documents."""
        if not data.documents:
            raise InputError(f"{data.name} holds no documents", hint="give a .txt file, or rows with a text")
        return documents_then_answers(
            model, data, self.training, ctx, piece_tokens=self.piece_tokens, sft_epochs=self.sft_epochs
        )
