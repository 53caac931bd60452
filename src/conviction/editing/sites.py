"""Where facts are written: the second matrix of each block's MLP, a memory from keys to values.

Geva et al. 2012.14913; Meng et al. 2202.05262.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from conviction.errors import InputError
from conviction.models.hf import HFModel
from conviction.models.lora import decoder_layers

__all__ = ["Site", "check_layer", "depth_layers", "find_sites"]

NAMES = ("mlp.down_proj", "mlp.c_proj", "mlp.dense_4h_to_h", "mlp.fc2")
"""Llama, Mistral, Qwen, Gemma, Phi-3; GPT-2; GPT-NeoX; Phi and others."""


@dataclass(frozen=True)
class Site:
    """One block's memory: ``linear`` maps keys [width] to values [hidden]; ``name`` is its weight's."""

    layer: int
    block: nn.Module
    linear: nn.Module
    name: str

    @property
    def weight(self) -> Tensor:
        """[hidden, width], whichever way round the module keeps it."""
        weight: Any = self.linear.weight
        result: Tensor = weight.T if isinstance(self.linear, Conv1D) else weight
        return result

    @property
    def width(self) -> int:
        """Length of a key."""
        return int(self.weight.shape[1])


def find_sites(model: HFModel) -> list[Site]:
    """One per block, in order. Raises InputError for an architecture whose MLP has no such matrix."""
    blocks = decoder_layers(model.module)
    paths = {id(child): name for name, child in model.module.named_modules()}
    sites = []
    for layer, block in enumerate(blocks):
        known = dict(block.named_modules())
        name = next((n for n in NAMES if isinstance(known.get(n), nn.Linear | Conv1D)), None)
        if name is None:
            raise InputError(
                f"{type(model.module).__name__} has no MLP whose second matrix is known here (block {layer})",
                hint=f"editing knows blocks with {', '.join(NAMES)}: Llama, Mistral, Qwen, Gemma, Phi, GPT-2, "
                "GPT-NeoX; mixtures of experts are not supported",
            )
        sites.append(Site(layer, block, known[name], f"{paths[id(known[name])]}.weight"))
    return sites


def depth_layers(depth: int, fractions: tuple[float, ...]) -> list[int]:
    """Layers at the given shares of the depth, each once."""
    return sorted({min(depth - 1, round(f * depth)) for f in fractions})


def check_layer(layer: int, depth: int) -> int:
    """The layer, if the model has it. Raises InputError otherwise."""
    if layer >= depth:
        raise InputError(f"layer is {layer}, the model has {depth}", hint=f"its blocks are 0 to {depth - 1}")
    return layer
