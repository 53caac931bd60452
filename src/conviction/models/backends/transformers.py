"""Models by name, through transformers: embedded ones, folders, ``.gguf`` files, the hub."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import cached_file

from conviction.core.storage import user_path
from conviction.errors import (
    ConvictionError,
    ModelError,
    ModelNotFoundError,
    first_line,
    nearest,
    no_memory,
    out_of_memory,
)
from conviction.models.devices import check_dtype_name, choose_device, choose_dtype, to_dtype
from conviction.models.embedded import EMBEDDED, ensure
from conviction.models.engine.torch_engine import TorchEngine
from conviction.models.fetching import cached_folder, check_fetching, may_fetch
from conviction.models.gguf import parsed_once, read_gguf
from conviction.models.weight_files import (
    INDEX,
    check_config,
    check_ends,
    check_folder,
    check_index,
    check_loaded,
    checked_loading,
)

# Loading says what it does through `log`, and what went wrong through an error.
huggingface_hub.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it says at every product that it rounds


def load(
    name: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    log: Callable[[str], None] = lambda _: None,
) -> TorchEngine:
    """An embedded model by name, a local folder, a ``.gguf`` file, or a hub id.

    Raises ModelNotFoundError if there is no such model, ModelError if it does not load.
    """
    check_dtype_name(dtype)
    where = choose_device(device)
    source = _source(name, log)
    source["trust_remote_code"] = trust_remote_code
    try:
        return _read(name, source, where, dtype)
    except ConvictionError:
        raise
    except Exception as error:  # a damaged or foreign model can fail in any way
        raise _explain(name, error) from error


def _read(name: str, source: dict[str, Any], where: torch.device, dtype: str) -> TorchEngine:
    if source.get("local_files_only") and "gguf_file" not in source:
        check_folder(Path(source["pretrained_model_name_or_path"]))
    with parsed_once():
        whole = AutoConfig.from_pretrained(**source)
        config = whole.get_text_config()
        hidden = int(config.hidden_size)
        chosen, reason = choose_dtype(dtype, where, hidden, int(getattr(config, "intermediate_size", 0) or 4 * hidden))
        if "gguf_file" in source:
            module, tokenizer = read_gguf(source, chosen)
        else:
            tokenizer = AutoTokenizer.from_pretrained(**source)
            if not source.get("local_files_only"):
                _check_hub(name, whole)
            # a pickle is never opened; what does not fit is said by names
            wanted = {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
            with checked_loading(name):
                module, info = AutoModelForCausalLM.from_pretrained(**source, **wanted, dtype=chosen)
            check_loaded(info, name)
            check_ends(module.generation_config, name)
            if hasattr(whole, "quantization_config") and not hasattr(module.config, "quantization_config"):
                to_dtype(module, chosen)  # FP8 on a CPU: transformers made bf16 of the codes and left the rest
        module.requires_grad_(False)
    return TorchEngine(module.to(where), tokenizer, dtype_reason=reason)


def _check_hub(name: str, config: Any) -> None:
    """The same of a model on the hub: its index is fetched and read before the files that it names."""
    if cached_file(name, "adapter_config.json", **_IF_THERE) is not None:
        raise ModelError(
            f"'{name}' on the hub is an adapter, whose base it names itself",
            hint=f"`hf download {name} --local-dir FOLDER`, and load FOLDER",
        )
    chosen = check_config(config.to_dict(), f"config.json of '{name}'") or INDEX
    if chosen.endswith(".json") and (index := cached_file(name, chosen, **_IF_THERE)) is not None:
        check_index(Path(index))


_IF_THERE = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "gated_repo", "connection_errors")}


def _source(name: str, log: Callable[[str], None]) -> dict[str, Any]:
    """Arguments for ``from_pretrained``."""
    path = user_path(name)
    if name in EMBEDDED:
        if not EMBEDDED[name].cached:
            check_fetching(name)
        folder = ensure(EMBEDDED[name], log=log)
        return {"pretrained_model_name_or_path": str(folder), "local_files_only": True}
    if path.suffix.lower() == ".gguf":
        if not os.path.isfile(path):
            raise ModelNotFoundError(f"there is no file {path}", hint="check the path of the .gguf file")
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name, "local_files_only": True}
    if os.path.isdir(path):
        if not os.path.isfile(path / "config.json"):
            raise ModelNotFoundError(
                f"{path} holds no config.json", hint="give the folder that save_pretrained wrote, or a .gguf file"
            )
        return {"pretrained_model_name_or_path": str(path), "local_files_only": True}
    if not may_fetch():
        return {"pretrained_model_name_or_path": cached_folder(name), "local_files_only": True}
    looks_local = name.startswith((".", "~", os.sep)) or name.count("/") > 1
    if looks_local or "/" not in name:
        what = "folder" if looks_local else "model"
        raise ModelNotFoundError(
            f"there is no {what} '{name}'",
            hint=f"{nearest(name, EMBEDDED)}use one of {', '.join(EMBEDDED)}, a local folder, a .gguf file, "
            "or a hub id such as org/name",
        )
    return {"pretrained_model_name_or_path": name}


_CAUSES = {
    # a phrase in transformers' message → what to do about it
    "trust_remote_code": "this model brings its own code: pass --trust-remote-code only if you trust its authors",
    "gated repo": "accept the licence on the hub and log in with `hf auth login`",
    "safetensors": "convert the weights to safetensors: pickled weights are never opened",
}


def _explain(name: str, error: Exception) -> ModelError | ModelNotFoundError:
    if out_of_memory(error):
        return no_memory(error)
    text, first = str(error), first_line(error)
    for phrase, hint in _CAUSES.items():
        if phrase in text:
            return ModelError(f"cannot load '{name}': {first}", hint=hint)
    if "/" in name and not os.path.lexists(user_path(name)):
        return ModelNotFoundError(
            f"cannot get '{name}' from the model hub: {first}",
            hint="check the name and the connection; offline, give --model a local folder, a .gguf file, "
            f"or an embedded model ({', '.join(EMBEDDED)})",
        )
    return ModelError(f"cannot load '{name}': {first}", hint="check that it is a complete causal language model")
