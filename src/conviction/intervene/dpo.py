"""Preference training on pairs: DPO and the losses of its family."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from conviction.core.material import Material
from conviction.core.protocols import LanguageModel
from conviction.core.settings import check_settings, setting
from conviction.errors import InputError
from conviction.train.guard import Guard
from conviction.train.settings import Training, Weights

if TYPE_CHECKING:
    from conviction.train.loop import Task, Trained, Watch
    from conviction.train.objectives import Preference

__all__ = ["Dpo"]

OWN = ("beta", "label_smoothing", "gamma", "penalty", "desirable_weight", "undesirable_weight")
"""Parameters that belong to losses."""


@dataclass(frozen=True, kw_only=True)
class Dpo:
    """Make chosen answers likelier than rejected ones. Parameters not given have the loss's own defaults."""

    name: ClassVar[str] = "dpo"
    changes: ClassVar[str] = "weights (LoRA adapter, or all)"
    needs: ClassVar[str] = "pairs"
    costs: ClassVar[str] = "a training run before; nothing at run time"

    loss: Literal["dpo", "ipo", "hinge", "dpo_norm", "simpo", "orpo", "kto", "dpop", "hypo", "robust"] = setting(
        "dpo", "which preference loss; see conviction.train.losses"
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
        from conviction.train.losses import parameters
        from conviction.train.objectives import Preference

        own = parameters(self.loss)
        given = {name: value for name in OWN if (value := getattr(self, name)) is not None}
        for name in given:
            if name not in own:
                raise InputError(f"loss '{self.loss}' has no {name}", hint=f"its parameters: {', '.join(own)}")
        merged = {**own, **given}
        return Preference(loss=self.loss, beta=merged.pop("beta"), parameters=merged, sft_weight=self.sft_weight)

    def apply(
        self,
        model: LanguageModel,
        material: Material,
        *,
        guard: Guard | None = None,
        folder: Path | None = None,
        track: str | None = None,
        watch: Watch | None = None,
    ) -> Trained:
        """Train on the material's pairs; the given model stays as it is."""
        from conviction.intervene.tune import tune

        return tune(self, self.task(model, material, guard=guard, watch=watch), material, folder, track, watch)

    def task(
        self, model: LanguageModel, material: Material, *, guard: Guard | None = None, watch: Watch | None = None
    ) -> Task:
        """The training run that ``apply`` carries out, and a forecast foresees.

        Raises InputError if the material has no pairs, or none that fit.
        """
        from conviction.intervene.tune import as_task, fit, with_weights
        from conviction.train.batches import encode_pairs, step_order
        from conviction.train.loop import Watch

        if not material.pairs:
            raise InputError(f"{material.name} holds no preference pairs", hint="give rows of prompt, chosen, rejected")
        loaded, watch, objective = with_weights(model, self.name), watch or Watch(), self.objective()
        examples, notes = fit(loaded, encode_pairs(loaded.encoder, material.pairs), self.training, watch)
        return as_task(
            self,
            loaded,
            material,
            examples,
            step_order(len(examples), self.training),
            objective,
            weights=self.weights,
            training=self.training,
            guard=guard,
            notes=notes,
        )
