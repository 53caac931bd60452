"""Supervised fine-tuning: imitate answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from conviction.core.context import RunContext
from conviction.core.options import fill_fields, flat_fields
from conviction.data.training_data import TrainingData
from conviction.errors import InputError
from conviction.interventions.records import PlaceboKind, SearchSpace
from conviction.interventions.trained import Prepared, apply_training, training_task
from conviction.training.settings import Training, Weights

if TYPE_CHECKING:
    from conviction.models.hf import HFModel

__all__ = ["Sft"]


@flat_fields
@dataclass(frozen=True, kw_only=True)
class Sft:
    """Make given answers likelier: prompt and completion, or the chosen side of pairs. Prompts are not trained."""

    name: ClassVar[str] = "sft"
    changes: ClassVar[str] = "weights (LoRA adapter, or all)"
    needs: ClassVar[str] = "examples, or pairs, whose chosen answers are learnt"
    costs: ClassVar[str] = "a training run before; nothing at run time"
    trains: ClassVar[bool] = True
    forecastable: ClassVar[bool] = True
    cost_rank: ClassVar[int] = 60
    placebo: ClassVar[PlaceboKind | None] = "pairs"
    search: ClassVar[SearchSpace] = {"learning_rate": (5e-5, 1.5e-4, 5e-4)}

    weights: Weights = field(default_factory=Weights)
    training: Training = field(default_factory=lambda: Training(learning_rate=1e-4))

    def __init__(self, **fields: Any) -> None:
        fill_fields(self, fields)

    apply = apply_training
    task = training_task

    def prepare(self, model: HFModel, data: TrainingData, ctx: RunContext) -> Prepared:
        """The data's answers. Raises InputError if it has none, or none that fit."""
        from conviction.interventions.training_run import fit
        from conviction.training.batches import encode_examples, step_order
        from conviction.training.objectives import Likelihood

        if not data.answers:
            raise InputError(f"{data.name} holds no answers", hint="give rows of prompt and completion, or pairs")
        examples, notes = fit(model, encode_examples(model.encoder, data.answers), self.training, ctx)
        order = step_order(len(examples), self.training)
        return Prepared(examples=examples, order=order, objective=Likelihood(), notes=notes)
