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
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from conviction.core.gate import read_json, validate
from conviction.core.protocols import LanguageModel
from conviction.core.storage import storage_errors, user_path, write_atomic
from conviction.core.wording import printable
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
Fields = TypeVar("Fields", bound=BaseModel)

HINT = "it was damaged, or another version wrote it: apply the intervention again"
MOST_BYTES = 16 * 2**20  # of a record: a system prompt may be a book


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
    path = folder / RECORD
    fields = read_json(path, ModelError, hint=HINT, most=MOST_BYTES)
    record = validate(_Record, fields, printable(path), ModelError, hint=HINT)
    if record.schema_version != SCHEMA or record.kind not in KINDS:
        kind = printable(repr(record.kind)[:80])
        raise ModelError(f"{printable(path)} is of kind {kind}, version {record.schema_version}", hint=HINT)
    module, attribute = KINDS[record.kind].split(":")
    loader = getattr(import_module(module), attribute)
    base = load(str(folder / "base") if record.base is None else record.base)
    moved: LanguageModel = loader(name, base, folder, fields, log)
    return moved


class _Record(BaseModel):
    """What all kinds have in common."""

    model_config = ConfigDict(strict=True)

    schema_version: int
    kind: str
    base: str | None = Field(min_length=1)


def fields_of(kind: type[Fields], record: Mapping[str, Any], folder: Path) -> Fields:
    """A kind's own fields of a record. Raises ModelError, naming the file and the field."""
    return validate(kind, dict(record), printable(folder / RECORD), ModelError, hint=HINT)
