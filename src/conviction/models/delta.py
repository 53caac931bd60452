"""Edits as undoable differences: low-rank updates of a few matrices, kept apart from the weights they change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from conviction.core.protocols import LanguageModel
from conviction.core.storage import storage_errors
from conviction.errors import InputError, ModelError
from conviction.models.copies import shallow_copy, weights_hash
from conviction.models.hf import HFModel, require_weights
from conviction.models.saved import save_moved

FILE = "edit.safetensors"


@dataclass(frozen=True, eq=False)
class LowRank:
    """left @ right.T, fp32: left [out, rank], right [in, rank]."""

    left: Tensor
    right: Tensor

    def __add__(self, other: LowRank) -> LowRank:
        return LowRank(torch.cat([self.left, other.left], dim=1), torch.cat([self.right, other.right], dim=1))

    def dense(self) -> Tensor:
        """[out, in]."""
        return self.left @ self.right.T


@dataclass(frozen=True, eq=False)
class Delta:
    """Updates by the name of the parameter, made on one model. ``a + b`` does both, ``-a`` undoes a."""

    updates: Mapping[str, LowRank]
    weights_hash: str

    def __add__(self, other: Delta) -> Delta:
        if self.weights_hash != other.weights_hash:
            raise InputError("these edits were made on different models", hint="stack edits of one model only")
        both = dict(self.updates)
        for name, update in other.updates.items():
            both[name] = both[name] + update if name in both else update
        return Delta(both, self.weights_hash)

    def __neg__(self) -> Delta:
        return Delta({name: LowRank(-u.left, u.right) for name, u in self.updates.items()}, self.weights_hash)


def edited(model: HFModel, delta: Delta, *, id: str, check: bool = True) -> HFModel:
    """The model with the updates added to its matrices; the given one stays as it is.

    check  that the edit was made on these very weights. Raises InputError if it was not.
    """
    if check and delta.weights_hash != weights_hash(model.module):
        raise InputError(
            f"the edit was made on other weights than those of {model.id}",
            hint="load the model that it was made on: an edit does not carry over",
        )
    moved = shallow_copy(model, id=id)
    with torch.no_grad():
        for name, update in delta.updates.items():
            place, _, leaf = name.rpartition(".")
            module = moved.module.get_submodule(place)
            old = getattr(module, leaf)
            change = update.dense().to(old.device)
            if isinstance(module, Conv1D):  # GPT-2 keeps its matrices the other way round
                change = change.T
            setattr(module, leaf, nn.Parameter((old.float() + change).to(old.dtype), requires_grad=False))
    return moved


def save_edited(base: HFModel, delta: Delta, folder: Path) -> None:
    """Write the edit and where its model is."""
    tensors = {}
    for name, update in delta.updates.items():
        tensors[f"{name}:left"] = update.left.detach().float().cpu().contiguous()
        tensors[f"{name}:right"] = update.right.detach().float().cpu().contiguous()
    with storage_errors(f"writing the edit to {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / FILE, metadata={"kinship": delta.weights_hash})
    save_moved(folder, "edit", base, {"matrices": sorted(delta.updates)})


def load_delta(path: Path) -> Delta:
    """Read an edit. Raises ModelError for a file that is none."""
    try:
        with safe_open(path, framework="pt") as file:
            known = (file.metadata() or {})["kinship"]
            names = sorted({key.removesuffix(":left") for key in file.keys() if key.endswith(":left")})  # noqa: SIM118
            updates = {n: LowRank(file.get_tensor(f"{n}:left"), file.get_tensor(f"{n}:right")) for n in names}
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ModelError(f"{path} is no edit ({error})", hint="apply the edit again") from error
    return Delta(updates, known)


def load_edited(
    id: str, base: LanguageModel, folder: Path, fields: dict[str, Any], log: Callable[[str], None]
) -> HFModel:
    """What ``save_edited`` wrote."""
    del fields, log
    moved = edited(require_weights(base, folder), load_delta(folder / FILE), id=id)
    moved.source = str(folder.resolve())
    return moved
