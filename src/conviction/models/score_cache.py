"""Scores already computed, on disk, so that an interrupted probe goes on where it stopped.

A key covers everything that a log-prob depends on: the content of the weights
(hashed at every call, so that a model changed in memory can never be served
the scores of another), chat template, dtype, kernel, device and the ids.
"""

from __future__ import annotations

import hashlib
import sqlite3
from array import array
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

import torch
import xxhash

from conviction.core.storage import cache_dir, storage_errors
from conviction.models.engine.packing import Ids

__all__ = ["ScoreCache", "fingerprint"]


# What torch.nn.Module keeps for itself, and where a model was loaded from; hooks are looked at where the cache is used.
_MODULE_MACHINERY = frozenset(vars(torch.nn.Module())) | {"config", "name_or_path"}


def fingerprint(module: Any) -> str:
    """A hash of all parameters and buffers of a torch module (names, shapes, dtypes, bytes) and its modules' settings.

    Settings are plain attributes: an epsilon, a LoRA scale, whether an adapter is switched off.

    XXH3-128 (27 GB/s here): it tells models apart, it is no proof against forgery.
    """
    digest = xxhash.xxh3_128()
    tensors = [*module.named_parameters(), *module.named_buffers()]
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy())
    for name, child in sorted(module.named_modules(), key=lambda item: item[0]):
        settings = {
            k: v for k, v in vars(child).items() if isinstance(v, bool | int | float | str | list | tuple | dict)
        }
        plain = {k: v for k, v in settings.items() if k not in _MODULE_MACHINERY}
        digest.update(f"{name}{type(child).__qualname__}{sorted(plain.items())!r}".encode())
    return digest.hexdigest()


class ScoreCache:
    """Maps (scope, prompt ids, answer ids) to log-probs, in one SQLite file."""

    def __init__(self, scope: Sequence[str]) -> None:
        known_by = [version("conviction"), *scope]  # another version may compute otherwise
        self._scope = hashlib.sha256("\0".join(known_by).encode()).digest()
        path = cache_dir() / "scores.sqlite"
        with storage_errors(f"opening the score cache {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=60)
            self._db.execute("CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, logprobs BLOB) WITHOUT ROWID")

    def find(self, rows: Iterable[tuple[Ids, Ids]]) -> dict[tuple[Ids, Ids], tuple[float, ...]]:
        """Those of the rows that are known."""
        with storage_errors("reading the score cache"):
            found = {}
            for row in rows:
                hit = self._db.execute("SELECT logprobs FROM scores WHERE key = ?", (self._key(row),)).fetchone()
                if hit is not None:
                    found[row] = tuple(array("d", hit[0]))
            return found

    def keep(self, scores: dict[tuple[Ids, Ids], tuple[float, ...]]) -> None:
        """Store in one transaction."""
        with storage_errors("writing the score cache"), self._db:
            self._db.executemany(
                "INSERT OR REPLACE INTO scores VALUES (?, ?)",
                [(self._key(row), array("d", values).tobytes()) for row, values in scores.items()],
            )

    def close(self) -> None:
        """Release the file."""
        self._db.close()

    def _key(self, row: tuple[Ids, Ids]) -> bytes:
        prompt, answer = row
        ids = array("q", [len(prompt), *prompt, *answer])
        return hashlib.sha256(self._scope + ids.tobytes()).digest()
