"""Steering vectors: directions in the residual stream, as files that can be added, scaled and undone.

Contrastive activation addition (Rimsky et al. 2312.06681); representation
reading's first principal component (Zou et al. 2310.01405).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from conviction.core.protocols import LanguageModel
from conviction.core.storage import storage_errors
from conviction.errors import InputError, ModelError
from conviction.models.copies import shallow_copy, weights_hash
from conviction.models.hf import HFModel, require_weights
from conviction.models.lora import decoder_layers
from conviction.models.saved import save_moved
from conviction.models.shift import shift_block

FILE = "steering.safetensors"


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
        mine, theirs = dict(self.layers), dict(other.layers)
        for layer, vector in theirs.items():
            mine[layer] = mine[layer] + vector if layer in mine else vector
        return SteeringVector(mine, self.weights_hash)

    def __rmul__(self, factor: float) -> SteeringVector:
        return SteeringVector({layer: factor * vector for layer, vector in self.layers.items()}, self.weights_hash)

    def __neg__(self) -> SteeringVector:
        return -1.0 * self

    def __sub__(self, other: SteeringVector) -> SteeringVector:
        return self + (-other)

    def save(self, path: Path) -> None:
        """Write it as safetensors."""
        tensors = {f"layer.{i}": v.detach().float().cpu().contiguous() for i, v in sorted(self.layers.items())}
        with storage_errors(f"writing {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, path, metadata={"kinship": self.weights_hash})


def load_vector(path: Path) -> SteeringVector:
    """Read a vector. Raises ModelError for a file that is none."""
    hint = "give a steering.safetensors that `conviction apply steer` wrote"
    try:
        with safe_open(path, framework="pt") as file:
            known = (file.metadata() or {})["kinship"]
            layers = {int(name.removeprefix("layer.")): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError, json.JSONDecodeError) as error:
        raise ModelError(f"{path} is no steering vector ({error})", hint=hint) from error
    return SteeringVector(layers, known)


def steered(model: HFModel, vector: SteeringVector, *, id: str, check: bool = True) -> HFModel:
    """The model with the vector added to its residual stream at every position; the given one stays as it is.

    check  hash the weights, to be sure that the vector was made on them

    Raises InputError for a vector that was made on another model.
    """
    if check and vector.weights_hash != weights_hash(model.module):
        raise InputError(
            f"the steering vector was made on another model than {model.id}",
            hint="directions do not carry over: make one with `conviction apply steer` on this model",
        )
    moved = shallow_copy(model, id=id)
    blocks = decoder_layers(moved.module)
    with torch.no_grad():
        for layer, direction in vector.layers.items():
            shift_block(blocks[layer], direction)
    return moved


def save_steered(base: HFModel, vector: SteeringVector, folder: Path) -> None:
    """Write the vector and where its model is."""
    vector.save(folder / FILE)
    save_moved(folder, "steering", base, {"layers": sorted(vector.layers)})


def load_steered(
    id: str, base: LanguageModel, folder: Path, fields: dict[str, Any], log: Callable[[str], None]
) -> HFModel:
    """What ``save_steered`` wrote."""
    del fields, log
    moved = steered(require_weights(base, folder), load_vector(folder / FILE), id=id)
    moved.source = str(folder.resolve())
    return moved
