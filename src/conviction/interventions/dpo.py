"""Preference training on pairs: DPO and the losses of its family."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from conviction.core.context import RunContext
from conviction.core.options import fill_fields, flat, flat_fields, setting
from conviction.data.training_data import TrainingData
from conviction.errors import InputError
from conviction.interventions.records import PlaceboKind, SearchSpace
from conviction.interventions.trained import Prepared, apply_training, training_task
from conviction.training.losses import LOSSES, find_loss, loss_parameters
from conviction.training.settings import Training, Weights

if TYPE_CHECKING:
    from conviction.models.hf import HFModel
    from conviction.training.objectives import Preference

__all__ = ["Dpo"]


@flat_fields
@dataclass(frozen=True, kw_only=True)
class Dpo:
    """Make chosen answers likelier than rejected ones. Parameters not given have the loss's own defaults."""

    name: ClassVar[str] = "dpo"
    changes: ClassVar[str] = "weights (LoRA adapter, or all)"
    needs: ClassVar[str] = "pairs"
    costs: ClassVar[str] = "a training run before; nothing at run time"
    trains: ClassVar[bool] = True
    forecastable: ClassVar[bool] = True
    cost_rank: ClassVar[int] = 70
    placebo: ClassVar[PlaceboKind | None] = "pairs"
    search: ClassVar[SearchSpace] = {"learning_rate": (1e-4, 2.5e-4, 5e-4), "beta": (0.05, 0.1, 0.3)}

    loss: str = setting("dpo", "which preference loss; see conviction.training.losses", choices=LOSSES, sweepable=True)
    parameters: Any = field(default_factory=loss_parameters)
    sft_weight: float = setting(
        0.0, "adds so much of the chosen answers' negative log-likelihood", at_least=0, sweepable=True
    )
    weights: Weights = field(default_factory=Weights)
    training: Training = field(default_factory=Training)

    def __init__(self, **fields: Any) -> None:
        fill_fields(self, fields)
        loss, own = find_loss(self.loss), self._given_parameters()
        for name in own:
            if name not in loss.parameters:
                hint = f"its parameters: {', '.join(loss.parameters)}"
                raise InputError(f"loss '{self.loss}' has no {name}", hint=hint)
        if loss.needs_kl and self.training.examples_per_step < 2:
            why = "it measures answers against prompts that they do not belong to"
            raise InputError(
                f"{loss.name} needs two pairs in a step: {why}",
                hint="set batch_size or gradient_accumulation to 2 or more",
            )

    apply = apply_training
    task = training_task

    def _given_parameters(self) -> dict[str, float]:
        return {name: value for name, value in flat(self.parameters).items() if value is not None}

    def objective(self) -> Preference:
        """The loss with its parameters: those that are given over its own defaults."""
        from conviction.training.objectives import Preference

        merged = {**find_loss(self.loss).parameters, **self._given_parameters()}
        return Preference(loss=self.loss, beta=merged.pop("beta"), parameters=merged, sft_weight=self.sft_weight)

    def prepare(self, model: HFModel, data: TrainingData, ctx: RunContext) -> Prepared:
        """The data's pairs. Raises InputError if it has none, or none that fit."""
        from conviction.interventions.training_run import fit
        from conviction.training.batches import encode_pairs, step_order

        if not data.pairs:
            raise InputError(f"{data.name} holds no preference pairs", hint="give rows of prompt, chosen, rejected")
        examples, notes = fit(model, encode_pairs(model.encoder, data.pairs), self.training, ctx)
        order = step_order(len(examples), self.training)
        return Prepared(examples=examples, order=order, objective=self.objective(), notes=notes)
