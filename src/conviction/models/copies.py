"""Models that differ from another in a few tensors and share all the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from conviction.core.protocols import LanguageModel
from conviction.core.storage import storage_errors
from conviction.core.wording import printable
from conviction.errors import ModelError
from conviction.models.engine.torch_engine import TorchEngine
from conviction.models.hf import HFModel, require_weights
from conviction.models.lora import merged_copy, shared_copy

Change = TypeVar("Change")
MERGED = "fp32: an adapter was merged, whose update weights of 16 bits would round away"


def shallow_copy(model: HFModel, *, id: str, source: str | None = None) -> HFModel:
    """A model over the same storage, whose modules may be changed without the first one noticing.

    Parameters must be replaced, not written into. An adapter is merged, in fp32.
    """
    merged = hasattr(model.module, "peft_config")
    module = merged_copy(model.module) if merged else shared_copy(model.module)
    reason = MERGED if merged and model.dtype != torch.float32 else model.engine.dtype_reason
    engine = TorchEngine(module, model.tokenizer, dtype_reason=reason)
    return HFModel(id=id, engine=engine, check=model.check, source=source)


def weights_hash(module: Any) -> str:
    """A hash of all weights, rounded to bf16: the same for one model loaded in bf16 or in fp32.

    It tells whether a change was made on these very weights; ``fingerprint.fingerprint`` is stricter.
    """
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(module.named_parameters(), key=lambda item: item[0]):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        rounded = tensor.detach().to(torch.bfloat16).contiguous().cpu().flatten()
        digest.update(rounded.view(torch.uint8).numpy())
    return digest.hexdigest()


def save_change(path: Path, tensors: Mapping[str, Tensor], made_on: str) -> None:
    """Write the tensors of a change as safetensors, fp32, with the hash of the weights that it was made on."""
    with storage_errors(f"writing {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        plain = {name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(plain, path, metadata={"kinship": made_on})


def load_change(path: Path, build: Callable[[dict[str, Tensor], str], Change], *, what: str, hint: str) -> Change:
    """What ``build`` makes of the tensors and the hash in a file of ``save_change``. Raises ModelError for another."""
    try:
        with safe_open(path, framework="pt") as file:
            made_on = (file.metadata() or {})["kinship"]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        _check_finite(tensors)
        return build(tensors, made_on)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ModelError(f"{printable(path)} is no {what} ({printable(error)})", hint=hint) from error


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not (tensor.is_floating_point() and torch.isfinite(tensor).all()):
            raise ValueError(f"the numbers of '{name}' are not all finite")


def check_parts(parts: Mapping[str, bool], where: str) -> None:
    """Raise ModelError for parts of a change that do not fit the model it is made to; what → whether it fits."""
    if misfits := [what for what, fits in parts.items() if not fits]:
        raise ModelError(
            f"{where} does not fit the model: {printable('; '.join(misfits[:5]))}",
            hint="load it on the model that it was made on, or apply the intervention again",
        )


def change_loader(
    changed: Callable[..., HFModel], load: Callable[[Path], Any], file: str
) -> Callable[[str, LanguageModel, Path, dict[str, Any], Callable[[str], None]], HFModel]:
    """What ``saved.KINDS`` asks for: the base with the change in a folder's ``file``, as ``changed`` makes it."""

    def load_changed(id: str, base: LanguageModel, folder: Path, *_: Any) -> HFModel:
        return changed(require_weights(base, folder), load(folder / file), id=id, source=str(folder.resolve()))

    return load_changed
