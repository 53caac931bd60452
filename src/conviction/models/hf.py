"""Models whose torch weights are at hand: through transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from conviction.core.protocols import LanguageModel
from conviction.errors import InputError, ModelError
from conviction.models.backends import DEFAULT_BACKEND
from conviction.models.engine.torch_engine import TorchEngine
from conviction.models.language_model import EngineModel
from conviction.models.lora import merged_copy
from conviction.models.shift import is_steered


class HFModel(EngineModel):
    """A transformers causal language model (a ``WeightModel``): module and tokenizer as transformers made them."""

    engine: TorchEngine

    @property
    def module(self) -> Any:
        """The ``torch.nn.Module``."""
        return self.engine.module

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.engine.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, by the first of them."""
        parameter: torch.nn.Parameter = next(self.module.parameters())
        return parameter.dtype

    def save_whole(self, folder: Path) -> None:
        """Write all weights (safetensors; an adapter is merged into a copy first) and the tokenizer.

        Raises InputError for a steered model, whose vectors are no weights.
        """
        if is_steered(self.module):
            raise InputError(
                f"{self.id} is steered, which whole weights cannot hold",
                hint="apply `steer` with a run folder, and load its model",
            )
        module = merged_copy(self.module) if hasattr(self.module, "peft_config") else self.module
        folder.mkdir(parents=True, exist_ok=True)
        module.save_pretrained(str(folder))
        self.tokenizer.save_pretrained(str(folder))


def require_weights(base: LanguageModel, folder: Path) -> HFModel:
    """The base of what lies in a folder. Raises ModelError if its weights cannot be reached."""
    if not isinstance(base, HFModel):
        raise ModelError(
            f"{folder} changes the weights of {base.id}, which cannot be reached",
            hint=f"load it with the backend {DEFAULT_BACKEND}",
        )
    return base
