"""Edits as undoable differences: low-rank updates of a few matrices, kept apart from the weights they change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from conviction.errors import InputError
from conviction.models.copies import change_loader, check_parts, load_change, save_change, shallow_copy, weights_hash
from conviction.models.hf import HFModel
from conviction.models.quantised import dequantised
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
        mine, theirs = self.updates, other.updates
        both = {name: mine[name] + update if name in mine else update for name, update in theirs.items()}
        return Delta({**mine, **both}, self.weights_hash)

    def __neg__(self) -> Delta:
        return Delta({name: LowRank(-u.left, u.right) for name, u in self.updates.items()}, self.weights_hash)


def edited(model: HFModel, delta: Delta, *, id: str, check: bool = True, source: str | None = None) -> HFModel:
    """The model with the updates added to its matrices; the given one stays as it is.

    check   that the edit was made on these very weights. Raises InputError if it was not.
    source  the folder that it lies in
    """
    model = dequantised(model)  # nothing can be added to codes
    if check and delta.weights_hash != weights_hash(model.module):
        raise InputError(
            f"the edit was made on other weights than those of {model.id}",
            hint="load the model that it was made on: an edit does not carry over",
        )
    moved = shallow_copy(model, id=id, source=source)
    check_parts(_fits(moved.module, delta), f"{source}/{FILE}" if source else "the edit")
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


def _fits(module: nn.Module, delta: Delta) -> dict[str, bool]:
    """Each update in words, and whether the model has a matrix of its name and shape. Torch would stretch a 1 x 1."""
    known, fits = dict(module.named_parameters()), dict[str, bool]()
    for name, update in delta.updates.items():
        (out, rank), (width, other) = update.left.shape, update.right.shape
        layer = known.get(name) is not None and module.get_submodule(name.rpartition(".")[0])
        shape = tuple(known[name].shape) if name in known else ()
        wanted = (width, out) if isinstance(layer, Conv1D) else (out, width)
        have = "no such matrix" if name not in known else f"its matrix has shape {list(shape)}"
        fits[f"'{name}' [{out}, {rank}] x [{width}, {other}], {have}"] = shape == wanted and rank == other
    return fits


def save_edited(base: HFModel, delta: Delta, folder: Path) -> None:
    """Write the edit and where its model is."""
    tensors = {f"{name}:{side}": getattr(u, side) for name, u in delta.updates.items() for side in ("left", "right")}
    save_change(folder / FILE, tensors, delta.weights_hash)
    save_moved(folder, "edit", base, {"matrices": sorted(delta.updates)})


def load_delta(path: Path) -> Delta:
    """Read an edit. Raises ModelError for a file that is none."""

    def build(tensors: dict[str, Tensor], made_on: str) -> Delta:
        names = sorted({key.rpartition(":")[0] for key in tensors})
        if set(tensors) != {f"{name}:{side}" for name in names for side in ("left", "right")}:
            raise ValueError("it holds no pairs of NAME:left and NAME:right")
        if any(tensor.dim() != 2 for tensor in tensors.values()):
            raise ValueError("its factors are not all matrices")
        return Delta({n: LowRank(tensors[f"{n}:left"], tensors[f"{n}:right"]) for n in names}, made_on)

    return load_change(path, build, what="edit", hint="apply the edit again")


load_edited = change_loader(edited, load_delta, FILE)
