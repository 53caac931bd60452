"""Preference training on pairs: DPO and the losses of its family."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from conviction.core.context import RunContext
from conviction.core.options import check_settings, setting, takes_inner_fields
from conviction.core.protocols import LanguageModel
from conviction.data.training_data import TrainingData
from conviction.errors import InputError
from conviction.interventions.records import Outcome, PlaceboKind
from conviction.training.settings import Training, Weights

if TYPE_CHECKING:
    from conviction.training.loop import TrainingTask
    from conviction.training.objectives import Preference

__all__ = ["Dpo"]

OWN = ("beta", "label_smoothing", "gamma", "penalty", "desirable_weight", "undesirable_weight")
"""Parameters that belong to losses."""


@takes_inner_fields
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

    loss: Literal["dpo", "ipo", "hinge", "dpo_norm", "simpo", "orpo", "kto", "dpop", "hypo", "robust"] = setting(
        "dpo", "which preference loss; see conviction.training.losses"
    )
    beta: float | None = setting(None, "strength of the tie to the reference; none: the loss's default", above=0)
    label_smoothing: float | None = setting(
        None, "share of pairs taken to be mislabelled (dpo, robust)", at_least=0, below=0.5
    )
    gamma: float | None = setting(None, "target margin (simpo)", at_least=0)
    penalty: float | None = setting(None, "weight of the chosen answer's loss of probability (dpop)", at_least=0)
    desirable_weight: float | None = setting(None, "weight of chosen answers (kto)", above=0)
    undesirable_weight: float | None = setting(None, "weight of rejected answers (kto)", above=0)
    sft_weight: float = setting(0.0, "adds so much of the chosen answers' negative log-likelihood", at_least=0)
    weights: Weights = field(default_factory=Weights)
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        check_settings(self)
        if any(getattr(self, name) is not None for name in OWN):
            self.objective()
        if self.loss == "kto" and self.training.examples_per_step < 2:
            raise InputError(
                "kto needs two pairs in a step: it measures answers against prompts that they do not belong to",
                hint="set batch_size or gradient_accumulation to 2 or more",
            )

    def objective(self) -> Preference:
        """The loss with its parameters. Raises InputError for a parameter that it does not have."""
        from conviction.training.losses import parameters
        from conviction.training.objectives import Preference

        own = parameters(self.loss)
        given = {name: value for name in OWN if (value := getattr(self, name)) is not None}
        for name in given:
            if name not in own:
                raise InputError(f"loss '{self.loss}' has no {name}", hint=f"its parameters: {', '.join(own)}")
        merged = {**own, **given}
        return Preference(loss=self.loss, beta=merged.pop("beta"), parameters=merged, sft_weight=self.sft_weight)

    def apply(self, model: LanguageModel, data: TrainingData, ctx: RunContext | None = None) -> Outcome:
        """Train on the material's pairs; the given model stays as it is."""
        from conviction.interventions.training_run import run_training

        ctx = ctx or RunContext()
        return run_training(self, self.task(model, data, ctx), data, ctx)

    def task(self, model: LanguageModel, data: TrainingData, ctx: RunContext | None = None) -> TrainingTask:
        """The training run that ``apply`` carries out, and a forecast foresees.

        Raises InputError if the material has no pairs, or none that fit.
        """
        from conviction.interventions.training_run import as_task, fit, with_weights
        from conviction.training.batches import encode_pairs, step_order

        if not data.pairs:
            raise InputError(f"{data.name} holds no preference pairs", hint="give rows of prompt, chosen, rejected")
        loaded, ctx, objective = with_weights(model, self.name), ctx or RunContext(), self.objective()
        examples, notes = fit(loaded, encode_pairs(loaded.encoder, data.pairs), self.training, ctx)
        return as_task(
            self,
            loaded,
            data,
            examples,
            step_order(len(examples), self.training),
            objective,
            weights=self.weights,
            training=self.training,
            guard=ctx.guard,
            notes=notes,
        )
