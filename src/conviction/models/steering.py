"""Steering vectors: directions in the residual stream, as files that can be added, scaled and undone.

Contrastive activation addition (Rimsky et al. 2312.06681); representation
reading's first principal component (Zou et al. 2310.01405).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from conviction.errors import InputError
from conviction.models.copies import change_loader, check_parts, load_change, save_change, shallow_copy, weights_hash
from conviction.models.hf import HFModel
from conviction.models.lora import decoder_layers
from conviction.models.saved import save_moved
from conviction.models.shift import shift_block

FILE = "steering.safetensors"
_NAME = re.compile(r"layer\.\d{1,6}")


@dataclass(frozen=True, eq=False)
class SteeringVector:
    """One vector [hidden] per steered block, made on one model. ``a - b`` and ``2 * a`` are vectors, too.

    weights_hash  of the weights that it was made on (``models.copies``)
    """

    layers: Mapping[int, Tensor]
    weights_hash: str

    def __add__(self, other: SteeringVector) -> SteeringVector:
        if self.weights_hash != other.weights_hash:
            raise InputError(
                "these steering vectors were made on different models", hint="combine vectors of one model only"
            )
        mine, theirs = self.layers, other.layers
        both = {layer: mine[layer] + vector if layer in mine else vector for layer, vector in theirs.items()}
        return SteeringVector({**mine, **both}, self.weights_hash)

    def __rmul__(self, factor: float) -> SteeringVector:
        return SteeringVector({layer: factor * vector for layer, vector in self.layers.items()}, self.weights_hash)

    def __neg__(self) -> SteeringVector:
        return -1.0 * self

    def __sub__(self, other: SteeringVector) -> SteeringVector:
        return self + (-other)

    def save(self, path: Path) -> None:
        """Write it as safetensors."""
        save_change(path, {f"layer.{i}": v for i, v in sorted(self.layers.items())}, self.weights_hash)


def load_vector(path: Path) -> SteeringVector:
    """Read a vector. Raises ModelError for a file that is none."""

    def build(tensors: dict[str, Tensor], made_on: str) -> SteeringVector:
        wrong = [name for name, tensor in tensors.items() if not _NAME.fullmatch(name) or tensor.dim() != 1]
        if wrong or not tensors:
            raise ValueError(f"it holds no vectors of the names layer.NUMBER, but {wrong[:5]}")
        return SteeringVector({int(name.removeprefix("layer.")): t for name, t in tensors.items()}, made_on)

    hint = "give a steering.safetensors that `conviction apply steer` wrote"
    return load_change(path, build, what="steering vector", hint=hint)


def steered(
    model: HFModel, vector: SteeringVector, *, id: str, check: bool = True, source: str | None = None
) -> HFModel:
    """The model with the vector added to its residual stream at every position; the given one stays as it is.

    check   hash the weights, to be sure that the vector was made on them
    source  the folder that it lies in

    Raises InputError for a vector that was made on another model.
    """
    if check and vector.weights_hash != weights_hash(model.module):
        raise InputError(
            f"the steering vector was made on another model than {model.id}",
            hint="directions do not carry over: make one with `conviction apply steer` on this model",
        )
    moved = shallow_copy(model, id=id, source=source)
    blocks, width = decoder_layers(moved.module), model.engine.hidden_size
    where = f"{source}/{FILE}" if source else "the steering vector"
    check_parts(
        {
            f"layer {layer} of shape {list(direction.shape)}, its {len(blocks)} blocks have width {width}": (
                0 <= layer < len(blocks) and tuple(direction.shape) == (width,)
            )
            for layer, direction in vector.layers.items()
        },
        where,
    )
    with torch.no_grad():
        for layer, direction in vector.layers.items():
            shift_block(blocks[layer], direction)
    return moved


def save_steered(base: HFModel, vector: SteeringVector, folder: Path) -> None:
    """Write the vector and where its model is."""
    vector.save(folder / FILE)
    save_moved(folder, "steering", base, {"layers": sorted(vector.layers)})


load_steered = change_loader(steered, load_vector, FILE)
