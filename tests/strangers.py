"""Folders as a stranger may send them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny import tiny_module

from conviction.models.copies import weights_hash
from conviction.models.lora import add_lora, save_lora


def adapter(folder: Path, base: Any, **settings: Any) -> Path:
    """A small adapter, with other settings in its ``adapter_config.json``."""
    module = tiny_module("llama")
    add_lora(module, rank=2, scale=1.0, target_modules=("q_proj",))
    save_lora(module, folder, base="x")
    path = folder / "adapter_config.json"
    known = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**known, "base_model_name_or_path": base, **settings}), encoding="utf-8")
    return folder


def saved(folder: Path, kind: str, base: Any, **fields: Any) -> Path:
    """A folder of ``save_moved``."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {"schema_version": 1, "kind": kind, "base": base, **fields}
    (folder / "conviction.json").write_text(json.dumps(record), encoding="utf-8")
    return folder


def change(folder: Path, kind: str, base: Path, **tensors: torch.Tensor) -> Path:
    """An edit or a steering vector on ``base``, with the right hash. In names ``__`` stands for a point."""
    from conviction.models import load_model

    saved(folder, kind, str(base))
    made_on = weights_hash(load_model(str(base), dtype="fp32").module)  # type: ignore[attr-defined]
    named = {name.replace("__", "."): tensor.clone() for name, tensor in tensors.items()}
    save_file(named, folder / f"{kind}.safetensors", metadata={"kinship": made_on})
    return folder
