"""Moved models on disk: a folder that names its base and says what was done to it.

What has no format of its own (an adapter has PEFT's, whole weights transformers')
gets a ``conviction.json``: its kind, its base, the kind's own fields. A base may
be such a folder itself, so changes pile up and each can be taken off.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from conviction.core.protocols import LanguageModel
from conviction.core.storage import storage_errors, user_path, write_atomic
from conviction.errors import InputError, ModelError

RECORD = "conviction.json"
SCHEMA = 1

KINDS = {
    "edit": "conviction.models.delta:load_edited",
    "prompt": "conviction.models.prompted:load_prompted",
    "rag": "conviction.retrieval.passages:load_retrieving",
    "steering": "conviction.models.steering:load_steered",
}
"""Kind → a function from (id, base, folder, fields, log) to the model."""

Load = Callable[[str], LanguageModel]


def is_saved(name: str) -> bool:
    """Whether a model's name is a folder that ``save_moved`` wrote."""
    try:
        return (user_path(name) / RECORD).is_file()
    except OSError:  # a name too long for a path, a folder one may not enter
        return False


def save_moved(folder: Path, kind: str, base: Any, fields: Mapping[str, Any]) -> None:
    """Write ``conviction.json``; a base that can be found by no name is written beside it, whole."""
    with storage_errors(f"writing the model to {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        source = getattr(base, "source", None)
        if source is None:
            if not hasattr(base, "save_whole"):
                raise InputError(
                    f"{base.id} cannot be saved", hint="apply without a run folder, or load the model first"
                )
            base.save_whole(folder / "base")
    record = {"schema_version": SCHEMA, "kind": kind, "base": source, **fields}
    write_atomic(folder / RECORD, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def load_saved(name: str, load: Load, log: Callable[[str], None]) -> LanguageModel:
    """The model in a folder of ``save_moved``. ``load`` gives its base by name.

    Raises ModelError for a damaged record, or a base that is not the one it was made on.
    """
    folder = user_path(name)
    hint = "it was damaged, or another version wrote it: apply the intervention again"
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        kind, base = record["kind"], record["base"] or str(folder / "base")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder / RECORD} cannot be read ({error})", hint=hint) from error
    if record.get("schema_version") != SCHEMA or kind not in KINDS:
        raise ModelError(f"{folder / RECORD} is of kind {kind!r}, version {record.get('schema_version')}", hint=hint)
    module, attribute = KINDS[kind].split(":")
    try:
        moved: LanguageModel = getattr(import_module(module), attribute)(name, load(base), folder, record, log)
    except KeyError as error:
        raise ModelError(f"{folder / RECORD} lacks {error}", hint=hint) from error
    return moved
