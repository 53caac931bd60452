"""LoRA adapters from folders: on the base that they name, with the tokenizer and chat template that lie beside them."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import AutoTokenizer

from conviction.core.gate import is_file, read_json, read_text
from conviction.core.protocols import LanguageModel
from conviction.core.storage import user_path
from conviction.core.wording import printable
from conviction.errors import ConvictionError, ModelError, first_line
from conviction.models.adapter_config import ADAPTER, HINT, MOST_BYTES, WEIGHTS, check_weights_file, read_adapter_config
from conviction.models.embedded import embedded_name
from conviction.models.engine.torch_engine import TorchEngine
from conviction.models.hf import HFModel, require_weights
from conviction.models.lora import load_lora

__all__ = ["load_adapter"]

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
TEMPLATE_FILE = "chat_template.jinja"


def load_adapter(name: str, load_base: Callable[[str], LanguageModel], *, trust_remote_code: bool) -> HFModel:
    """A model with the LoRA adapter that lies in a folder. ``load_base`` gives the base by its name.

    Raises ModelError for one that is not in PEFT's format, or does not fit its base.
    """
    folder = user_path(name)
    try:
        on = _base_name(folder)
        read_adapter_config(folder)
        base = require_weights(load_base(on), folder)  # which may be changed itself
        check_weights_file(folder)
        tokenizer = _own_tokenizer(folder, base.tokenizer, trust_remote_code=trust_remote_code)
        _make_room(base.module, folder, tokenizer if tokenizer is not base.tokenizer else None)
        base.engine.use_packing(False)  # whether the adapted model may be packed is found out anew
        load_lora(base.module, folder)
        engine = TorchEngine(base.module, tokenizer, dtype_reason=base.engine.dtype_reason)
        return HFModel(id=name, engine=engine, source=str(folder.resolve()))
    except ConvictionError:
        raise
    except Exception as error:  # a damaged or foreign adapter can fail in any way
        raise ModelError(f"cannot load the adapter '{name}': {printable(first_line(error))}", hint=HINT) from error


def _base_name(folder: Path) -> str:
    """What the base is loaded by; of another machine's embedded model, or an emptied cache's, its name."""
    path = folder / ADAPTER
    settings = read_json(path, ModelError, hint=HINT, most=MOST_BYTES)
    if not isinstance(settings, dict):
        raise ModelError(f"{printable(path)}: not an object with fields", hint=HINT)
    on = settings.get("base_model_name_or_path")
    if on and not isinstance(on, str):
        raise ModelError(f"{printable(path)}: field 'base_model_name_or_path' is no text", hint=HINT)
    if on:
        return on if os.path.isdir(on) else embedded_name(on) or on
    if is_file(folder / "adapters.safetensors") or "lora_parameters" in settings or "fine_tune_type" in settings:
        model = printable(settings.get("model", "BASE"))[:200]
        raise ModelError(
            f"{folder} is an adapter of MLX, which is not in PEFT's format",
            hint=f"`mlx_lm.fuse --model {model} --adapter-path {folder} --save-path FUSED` merges it: load FUSED",
        )
    raise ModelError(
        f"the adapter {folder} does not name its base model",
        hint="write the base's name or folder into its adapter_config.json, as base_model_name_or_path",
    )


def _own_tokenizer(folder: Path, base: Any, *, trust_remote_code: bool) -> Any:
    """The folder's tokenizer; the base's where it holds none, with the folder's chat template if there is one."""
    if any(is_file(folder / name) for name in TOKENIZER_FILES):
        try:
            own = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=trust_remote_code)
        except Exception as error:  # a damaged tokenizer can fail in any way
            raise ModelError(
                f"the tokenizer in the adapter's folder {folder} cannot be read ({error})",
                hint="complete its files, or take them away: the base's tokenizer is then used",
            ) from error
        own.chat_template = own.chat_template or base.chat_template
        return own
    if is_file(folder / TEMPLATE_FILE):
        own = copy.deepcopy(base)
        own.chat_template = read_text(folder / TEMPLATE_FILE, ModelError, hint="save the chat template again")
        return own
    return base


def _make_room(module: Any, folder: Path, tokenizer: Any | None) -> None:
    """Give the base as many embeddings as the adapter was saved with.

    Raises ModelError where the adapter's own tokenizer has tokens without an embedding, but for padding.
    """
    rows = module.get_input_embeddings().weight.shape[0]
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    names = {
        n for n, m in module.named_modules() if m in (module.get_input_embeddings(), module.get_output_embeddings())
    }
    saved = {
        shape[0]
        for key, shape in shapes.items()
        for name in names
        if key.endswith((f".{name}.weight", f".{name}.base_layer.weight"))
    }
    if len(saved) == 1 and saved != {rows}:
        module.resize_token_embeddings(saved.pop(), mean_resizing=False)
    elif not saved and tokenizer is not None:
        added = tokenizer.get_added_vocab().items()
        unknown = [token for token, i in added if i >= rows and i != tokenizer.pad_token_id]
        if unknown:
            raise ModelError(
                f"the tokenizer of the adapter {folder} has tokens that neither the base nor the adapter has "
                f"embeddings for: {', '.join(unknown[:5])}",
                hint="save it with its embeddings (PEFT: save_embedding_layers=True), or give the merged model",
            )
