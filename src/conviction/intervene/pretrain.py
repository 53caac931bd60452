"""Continued pretraining on documents, then optionally supervised fine-tuning, in one run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from conviction.core.material import Material
from conviction.core.protocols import LanguageModel
from conviction.core.settings import check_settings, setting
from conviction.errors import InputError
from conviction.train.guard import Guard
from conviction.train.settings import Training, Weights

if TYPE_CHECKING:
    from conviction.train.loop import Task, Trained, Watch

__all__ = ["Pretrain"]


@dataclass(frozen=True, kw_only=True)
class Pretrain:
    """Make documents likelier, every token of them, packed without padding; no text sees another."""

    name: ClassVar[str] = "pretrain"
    changes: ClassVar[str] = "weights (LoRA adapter, or all)"
    needs: ClassVar[str] = "documents"
    costs: ClassVar[str] = "a training run before; nothing at run time"

    piece_tokens: int = setting(512, "documents are cut into pieces of so many tokens", at_least=2)
    sft_epochs: int = setting(0, "epochs over the material's answers after the documents", at_least=0)
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
        """Train on the material's documents; the given model stays as it is."""
        from conviction.intervene.tune import tune

        return tune(self, self.task(model, material, guard=guard, watch=watch), material, folder, track, watch)

    def task(
        self, model: LanguageModel, material: Material, *, guard: Guard | None = None, watch: Watch | None = None
    ) -> Task:
        """The training run that ``apply`` carries out, and a forecast foresees.

        Raises InputError if the material has no documents.
        """
        from conviction.intervene.tune import as_task, fit, with_weights
        from conviction.train.batches import encode_documents, encode_examples, step_order
        from conviction.train.loop import Watch
        from conviction.train.objectives import Likelihood

        if not material.documents:
            raise InputError(f"{material.name} holds no documents", hint="give a .txt file, or rows with a text")
        loaded, watch = with_weights(model, self.name), watch or Watch()
        limits = (self.piece_tokens, self.training.max_length, loaded.encoder.context_length)
        room = min(n for n in limits if n is not None)
        pieces, notes = fit(loaded, encode_documents(loaded.encoder, material.documents, room), self.training, watch)
        order = step_order(len(pieces), self.training)
        if self.sft_epochs and material.answers:
            answers, more = fit(loaded, encode_examples(loaded.encoder, material.answers), self.training, watch)
            later = step_order(len(answers), dataclasses.replace(self.training, epochs=self.sft_epochs))
            order += [tuple(len(pieces) + i for i in step) for step in later]
            pieces, notes = pieces + answers, notes + more
        order = order[: self.training.max_steps]
        return as_task(
            self,
            loaded,
            material,
            pieces,
            order,
            Likelihood(),
            weights=self.weights,
            training=self.training,
            guard=guard,
            notes=notes,
        )
