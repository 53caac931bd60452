"""Supervised fine-tuning: imitate answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from conviction.core.context import RunContext
from conviction.core.options import fill_fields, flat_fields
from conviction.core.protocols import LanguageModel
from conviction.data.training_data import TrainingData
from conviction.errors import InputError
from conviction.interventions.records import Outcome, PlaceboKind
from conviction.training.settings import Training, Weights

if TYPE_CHECKING:
    from conviction.training.loop import TrainingTask

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

    weights: Weights = field(default_factory=Weights)
    training: Training = field(default_factory=lambda: Training(learning_rate=1e-4))

    def __init__(self, **fields: Any) -> None:
        fill_fields(self, fields)

    def apply(self, model: LanguageModel, data: TrainingData, ctx: RunContext | None = None) -> Outcome:
        """Train on the data's answers; the given model stays as it is."""
        from conviction.interventions.training_run import run_training

        ctx = ctx or RunContext()
        return run_training(self, self.task(model, data, ctx), data, ctx)

    def task(self, model: LanguageModel, data: TrainingData, ctx: RunContext | None = None) -> TrainingTask:
        """The training run that ``apply`` carries out, and a forecast foresees.

        Raises InputError if the data has no answers, or none that fit.
        """
        from conviction.interventions.training_run import as_task, fit, with_weights
        from conviction.training.batches import encode_examples, step_order
        from conviction.training.objectives import Likelihood

        if not data.answers:
            raise InputError(f"{data.name} holds no answers", hint="give rows of prompt and completion, or pairs")
        loaded, ctx = with_weights(model, self.name), ctx or RunContext()
        examples, notes = fit(loaded, encode_examples(loaded.encoder, data.answers), self.training, ctx)
        return as_task(
            self,
            loaded,
            data,
            examples,
            step_order(len(examples), self.training),
            Likelihood(),
            weights=self.weights,
            training=self.training,
            guard=ctx.guard,
            notes=notes,
        )
