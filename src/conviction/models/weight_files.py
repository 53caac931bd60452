"""Folders of weights, checked before anything in them is opened, and what was read of them afterwards.

An index says which file holds which tensor: a stranger may write any path there. Only safetensors files of the
folder itself are read; a pickle, which can run code, is never opened. A tensor that a model needs and the files lack
would be drawn at random by transformers, and the model then says something else at every load.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from conviction.core.gate import is_file, open_file, read_json
from conviction.core.names import is_name
from conviction.core.wording import printable
from conviction.errors import ModelError

__all__ = [
    "CONFIG",
    "INDEX",
    "check_config",
    "check_ends",
    "check_folder",
    "check_index",
    "check_loaded",
    "checked_loading",
]

CONFIG, INDEX, WEIGHTS = "config.json", "model.safetensors.index.json", "model.safetensors"
MOST_BYTES = 32 * 2**20  # of a configuration or an index; the largest index on the hub has 10 MB
LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
OTHER_MODALITIES = re.compile(r"(^|\.)(vision|visual|image|audio|multi_modal)\w*\.")
SHOWN = 5  # names in a message
DAMAGED = "the folder is damaged, or was not written by save_pretrained: get a complete copy of the model"
ADDED_BYTES, ADDED_TIMES = 2**27, 4
"""What a model may have beside its weights: so many bytes, or so many times those of the weights."""


def check_folder(folder: Path) -> None:
    """Raise ModelError, naming file and field, for a folder whose files must not be opened, or cannot be a model."""
    settings = read_json(folder / CONFIG, ModelError, hint=DAMAGED, most=MOST_BYTES)
    if not isinstance(settings, dict):
        raise ModelError(f"{folder / CONFIG}: not an object with fields", hint=DAMAGED)
    chosen = check_config(settings, str(folder / CONFIG))
    names = [chosen] if chosen is not None else [name for name in (WEIGHTS, INDEX) if is_file(folder / name)][:1]
    files = [one for name in names for one in (check_index(folder / name) if name.endswith(".json") else [str(name)])]
    tensors = sum(_count(folder / name) for name in dict.fromkeys(files))
    parts = [settings, *(part for part in settings.values() if isinstance(part, dict))]  # text_config is such a part
    for name, layers in ((name, part.get(name)) for part in parts for name in LAYERS):
        if files and isinstance(layers, int) and layers > tensors:
            raise ModelError(
                f"{folder / CONFIG}: field '{name}' is {printable(layers)[:40]}, the weights hold {tensors} tensors",
                hint=DAMAGED,
            )


def check_config(settings: Mapping[str, Any], where: str) -> str | None:
    """What a configuration names as its file of weights, if it does.

    Raises ModelError for a file that is not safetensors, and for an attention kernel to be fetched from the hub.
    """
    for name in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal"):
        if "/" in json.dumps(settings.get(name), default=str):
            raise ModelError(
                f"{where}: field '{name}' names a kernel on the hub ({printable(settings[name])}), which is code",
                hint=f"take '{name}' out of the file: the model is then computed as transformers does",
            )
    chosen = settings.get("transformers_weights")
    if chosen is not None and not (_is_local(chosen) and chosen.endswith((".safetensors", ".safetensors.index.json"))):
        raise ModelError(f"{where}: field 'transformers_weights' names {_shown(chosen)}", hint=_ONLY)
    return chosen


_ONLY = "weights are read from .safetensors files of the folder itself, and a pickle (.bin, .pt) is never opened"


def check_index(path: Path) -> list[str]:
    """The files that an index of sharded weights names. Raises ModelError for one that must not be opened."""
    index = read_json(path, ModelError, hint=DAMAGED, most=MOST_BYTES)
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict) or not isinstance(index.get("metadata"), dict):
        raise ModelError(f"{path}: no object with the objects 'metadata' and 'weight_map'", hint=DAMAGED)
    for tensor, name in shards.items():
        if not (_is_local(name) and name.endswith(".safetensors")):
            raise ModelError(f"{path}: field 'weight_map.{printable(tensor)[:80]}' names {_shown(name)}", hint=_ONLY)
    return sorted(set(shards.values()))


def _is_local(name: Any) -> bool:
    """Whether a text names a file in a folder, or in a folder there: no root, no drive, no way up."""
    return isinstance(name, str) and len(name) < 500 and all(map(is_name, name.split("/")))


def _shown(value: Any) -> str:
    return printable(repr(value))[:120]


def _count(path: Path) -> int:
    """Tensors in a file. Raises ModelError for one that is missing, or is no safetensors file."""
    if not is_file(path):
        raise ModelError(f"{path} is missing, or is no regular file", hint=DAMAGED)
    open_file(path, ModelError).close()  # safetensors takes one that may not be read for one that is missing
    try:
        with safe_open(path, framework="pt") as file:
            return len(file.keys())
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} is no readable safetensors file ({error})", hint=DAMAGED) from error


def check_ends(generation: Any, where: str) -> None:
    """Raise ModelError for ids of the tokens that end a text, as ``generation_config.json`` has them, that are none."""
    ends = getattr(generation, "eos_token_id", None)
    for one in ends if isinstance(ends, list) else [ends]:
        if one is not None and not (isinstance(one, int) and 0 <= one < 2**31):
            raise ModelError(
                f"{where}: field 'eos_token_id' of its generation_config.json, or config.json, is {_shown(ends)}",
                hint="write the id of a token there, or a list of some",
            )


def check_loaded(info: Mapping[str, Collection[Any]], where: str) -> None:
    """Raise ModelError, with their names, for tensors that are missing, not of the model, or of another shape.

    info  what ``from_pretrained(output_loading_info=True)`` gives, without what is tied or an architecture ignores

    The part of a model of several modalities that reads pictures or sound may be too much: texts do not pass it.
    """
    shapes = (f"{name} {list(file)} for {list(model)}" for name, file, model in info["mismatched_keys"])
    kinds = (
        ("missing", info["missing_keys"]),
        ("not of this architecture", [name for name in info["unexpected_keys"] if not OTHER_MODALITIES.search(name)]),
        ("of another shape", list(shapes)),
    )
    wrong = [f"{len(names)} {what} ({_some(names)})" for what, names in kinds if names]
    if wrong:
        raise ModelError(
            f"the weights in '{where}' are not those of its configuration: tensors {'; '.join(wrong)}",
            hint="get a complete copy, whose config.json belongs to its weights: what is missing would be random",
        )


def _some(names: Iterable[str]) -> str:
    ordered = sorted(map(printable, names))
    return ", ".join(name[:120] for name in ordered[:SHOWN]) + (", …" if len(ordered) > SHOWN else "")


@contextmanager
def checked_loading(where: str) -> Iterator[None]:
    """While it is open transformers adds no more to a model's weights than ``_check_added`` allows, and logs no table.

    It fills in what files lack with random numbers before it says so, and the sizes in a configuration may be any
    numbers. ``check_loaded`` says afterwards, by name, what did not fit.
    """
    from transformers import PreTrainedModel

    logger = logging.getLogger("transformers.modeling_utils")
    before, logger.disabled = logger.disabled, True  # with another level transformers checks, and logs, more
    add = getattr(PreTrainedModel, _ADDING)

    def add_if_small(model: Any, missing: Collection[str], *more: Any, **named: Any) -> None:
        _check_added(model, missing, where)
        add(model, missing, *more, **named)

    setattr(PreTrainedModel, _ADDING, add_if_small)
    try:
        yield
    finally:
        setattr(PreTrainedModel, _ADDING, add)
        logger.disabled = before


_ADDING = "_move_missing_keys_from_meta_to_device"
"""What transformers makes room for missing tensors with: the last moment at which their sizes cost nothing."""


def _check_added(model: Any, missing: Collection[str], where: str) -> None:
    """Raise ModelError, naming the field, for a configuration that asks for far more than the files hold.

    model  with what was read; on the meta device is what was not, and buffers, which no file holds
    """
    added = {name: model.get_parameter_or_buffer(name) for name in missing if name not in model.all_tied_weights_keys}
    added |= dict(model.named_non_persistent_buffers())
    held = sum(tensor.nbytes for tensor in model.parameters() if not tensor.is_meta)
    if sum(tensor.nbytes for tensor in added.values()) <= max(ADDED_BYTES, ADDED_TIMES * held):
        return
    name = max(sorted(added), key=lambda name: added[name].nbytes)
    shape = list(added[name].shape)
    settings = model.config.to_dict()
    parts = [settings, *(part for part in settings.values() if isinstance(part, dict))]
    sizes = [(value, field) for part in parts for field, value in part.items() if type(value) is int and value > 1]
    value, field = max((one for one in sizes if any(length % one[0] == 0 for length in shape)), default=(0, ""))
    with_it = f"field '{field}' is {value}, and with it" if field else "with its sizes"
    raise ModelError(
        f"the configuration of '{where}': {with_it} '{printable(name)[:120]}' has the shape {shape}, which the weights "
        "do not hold",
        hint="get a complete copy, whose config.json belongs to its weights",
    )
