"""Models that differ from another in a few tensors and share all the rest."""

from __future__ import annotations

from typing import Any

import torch
import xxhash

from conviction.models.hf import HFModel
from conviction.models.lora import merged_copy, shared_copy


def shallow_copy(model: HFModel, *, id: str) -> HFModel:
    """A model over the same storage, whose modules may be changed without the first one noticing.

    Parameters must be replaced, not written into. An adapter is merged.
    """
    module = merged_copy(model.module) if hasattr(model.module, "peft_config") else shared_copy(model.module)
    return HFModel(id=id, module=module, tokenizer=model.tokenizer, dtype_reason=model.dtype_reason, check=model.check)


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
