"""Scores already computed, on disk, so that an interrupted probe goes on where it stopped.

A key covers everything that a log-prob depends on: the content of the weights
(hashed at every call, so that a model changed in memory can never be served
the scores of another), chat template, dtype, kernel, device and the ids. An
entry carries a checksum over its key and its numbers: one that a disk or a
stranger changed is computed again.
"""

from __future__ import annotations

import hashlib
import math
import os
import sqlite3
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from importlib.metadata import version
from typing import Any

import xxhash

from conviction.core.storage import cache_dir, storage_errors
from conviction.models.engine.protocol import Row

BETWEEN = -1
"""Stands between two answers in the key of what is known of both together; no token has this id."""
ABOVE_ZERO = 0.01  # nats: by how much rounding may lift the log-prob of a token that is certain
_CHECKSUM = 8  # bytes

Compute = Callable[[list[Row]], Iterable[Mapping[Row, Sequence[float]]]]


class ScoreCache:
    """Maps (scope, prompt ids, answer ids) to log-probs, in one SQLite file.

    Its table is named by the shape of its entries: those of ``scores`` have no checksum, and a tree of the same version
    that reads these would take it for one more log-prob.
    """

    def __init__(self, scope: Sequence[str]) -> None:
        known_by = [version("conviction"), *scope]  # another version may compute otherwise
        self._scope = hashlib.sha256("\0".join(known_by).encode()).digest()
        path = cache_dir() / "scores.sqlite"
        with _cache_errors(f"opening the score cache {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):  # SQLite would give it 0644, whatever the user's umask
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            self._db = sqlite3.connect(path, timeout=60)
            self._db.execute("CREATE TABLE IF NOT EXISTS scores_2 (key BLOB PRIMARY KEY, logprobs BLOB) WITHOUT ROWID")

    def find(self, rows: Iterable[Row]) -> dict[Row, tuple[float, ...]]:
        """Those of the rows that are known, and undamaged."""
        with _cache_errors("reading the score cache"):
            results = {}
            for row in rows:
                key = self._key(row)
                hit = self._db.execute("SELECT logprobs FROM scores_2 WHERE key = ?", (key,)).fetchone()
                if hit is not None and (values := _unpack(key, hit[0])) is not None and _possible(row, values):
                    results[row] = values
            return results

    def keep(self, scores: dict[Row, tuple[float, ...]]) -> None:
        """Store in one transaction."""
        with _cache_errors("writing the score cache"), self._db:
            self._db.executemany(
                "INSERT OR REPLACE INTO scores_2 VALUES (?, ?)",
                [(key, _pack(key, values)) for row, values in scores.items() for key in [self._key(row)]],
            )

    def drop(self, rows: Iterable[Row]) -> None:
        """Forget what is held of these rows."""
        with _cache_errors("writing the score cache"), self._db:
            self._db.executemany("DELETE FROM scores_2 WHERE key = ?", [(self._key(row),) for row in rows])

    def close(self) -> None:
        """Release the file."""
        self._db.close()

    def _key(self, row: Row) -> bytes:
        prompt, answer = row
        ids = array("q", [len(prompt), *prompt, *answer])
        return hashlib.sha256(self._scope + ids.tobytes()).digest()


@contextmanager
def _cache_errors(doing: str) -> Iterator[None]:
    """What SQLite says, as a StorageError; of a damaged file it may quote bytes that Python cannot decode."""
    with storage_errors(doing):
        try:
            yield
        except UnicodeDecodeError as error:
            raise sqlite3.DatabaseError("the file is damaged") from error


def _pack(key: bytes, values: Sequence[float]) -> bytes:
    content = array("d", values).tobytes()
    return content + xxhash.xxh3_64_digest(key + content)


def _unpack(key: bytes, blob: Any) -> tuple[float, ...] | None:
    """The numbers of an entry; None for one that is not as it was written."""
    if not isinstance(blob, bytes) or len(blob) % 8:
        return None
    content, checksum = blob[:-_CHECKSUM], blob[-_CHECKSUM:]
    return tuple(array("d", content)) if xxhash.xxh3_64_digest(key + content) == checksum else None


def _possible(row: Row, values: Sequence[float]) -> bool:
    """Whether these can be a row's numbers: one log-prob a token; of two answers together, two numbers."""
    answer = row[1]
    if not math.isfinite(sum(values)):  # one that is no number, or infinite, makes the sum so
        return False
    return len(values) == 2 if BETWEEN in answer else len(values) == len(answer) and max(values) <= ABOVE_ZERO


def get_or_compute(scope: Sequence[str] | None, rows: Iterable[Row], compute: Compute) -> dict[Row, tuple[float, ...]]:
    """The values of all rows: those that are known from the cache, the others computed and kept, batch by batch.

    scope    what values depend on besides the rows; None: nothing is read or written
    compute  from the rows that are not known, without duplicates, to their values; each batch
             is kept before the next is asked for
    """
    wanted = list(dict.fromkeys(rows))
    if scope is None:
        known: dict[Row, tuple[float, ...]] = {}
        for batch in compute(wanted):
            known.update((row, tuple(values)) for row, values in batch.items())
        return known
    with closing(ScoreCache(scope)) as cache:
        known = cache.find(wanted)
        for batch in compute([row for row in wanted if row not in known]):
            computed = {row: tuple(values) for row, values in batch.items()}
            cache.keep(computed)
            known.update(computed)
    return known
