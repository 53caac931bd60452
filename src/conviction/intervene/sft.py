"""Supervised fine-tuning: imitate answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from conviction.core.material import Material
from conviction.core.protocols import LanguageModel
from conviction.core.settings import check_settings
from conviction.errors import InputError
from conviction.train.guard import Guard
from conviction.train.settings import Training, Weights

if TYPE_CHECKING:
    from conviction.train.loop import Task, Trained, Watch

__all__ = ["Sft"]


@dataclass(frozen=True, kw_only=True)
class Sft:
    """Make given answers likelier: prompt and completion, or the chosen side of pairs. Prompts are not trained."""

    name: ClassVar[str] = "sft"
    changes: ClassVar[str] = "weights (LoRA adapter, or all)"
    needs: ClassVar[str] = "examples, or pairs, whose chosen answers are learnt"
    costs: ClassVar[str] = "a training run before; nothing at run time"

    weights: Weights = field(default_factory=Weights)
    training: Training = field(default_factory=lambda: Training(learning_rate=1e-4))

    def __post_init__(self) -> None:
        check_settings(self)

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
        """Train on the material's answers; the given model stays as it is."""
        from conviction.intervene.tune import tune

        return tune(self, self.task(model, material, guard=guard, watch=watch), material, folder, track, watch)

    def task(
        self, model: LanguageModel, material: Material, *, guard: Guard | None = None, watch: Watch | None = None
    ) -> Task:
        """The training run that ``apply`` carries out, and a forecast foresees.

        Raises InputError if the material has no answers, or none that fit.
        """
        from conviction.intervene.tune import as_task, fit, with_weights
        from conviction.train.batches import encode_examples, step_order
        from conviction.train.loop import Watch
        from conviction.train.objectives import Likelihood

        if not material.answers:
            raise InputError(f"{material.name} holds no answers", hint="give rows of prompt and completion, or pairs")
        loaded, watch = with_weights(model, self.name), watch or Watch()
        examples, notes = fit(loaded, encode_examples(loaded.encoder, material.answers), self.training, watch)
        return as_task(
            self,
            loaded,
            material,
            examples,
            step_order(len(examples), self.training),
            Likelihood(),
            weights=self.weights,
            training=self.training,
            guard=guard,
            notes=notes,
        )
