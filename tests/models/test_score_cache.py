"""What a disk or a stranger changed in the score cache is found, and computed again."""

from __future__ import annotations

import os
import sqlite3
import stat
from array import array
from collections.abc import Callable
from pathlib import Path

import pytest
import xxhash
from tiny import context, pairs, tiny_model

from conviction import Dpo, Query, Training, Weights, chat
from conviction.core.storage import cache_dir
from conviction.errors import StorageError
from conviction.training.guard import Guard

QUERIES = [Query(chat("Which tea?"), ("A green one.", "None."))]


def flip(blob: bytes) -> bytes:
    """A bit of the exponent of the second number: its log-prob is another by orders of magnitude."""
    return blob[:14] + bytes([blob[14] ^ 0x40]) + blob[15:]


def lifted(blob: bytes) -> bytes:
    """+10 nats."""
    return array("d", [10.0]).tobytes() + blob[8:]


DAMAGES: dict[str, Callable[[bytes], bytes | str | float]] = {
    "a bit": flip,
    "a number above zero": lifted,
    "short": lambda blob: blob[:-8],
    "cut within a number": lambda blob: blob[:-3],
    "empty": lambda _: b"",
    "text": lambda _: "scores",
    "a number": lambda _: 1.5,
}


def damage(change: Callable[[bytes], bytes | str | float]) -> int:
    database = sqlite3.connect(Path(cache_dir()) / "scores.sqlite")
    with database:
        rows = database.execute("SELECT key, logprobs FROM scores_2").fetchall()
        database.executemany("UPDATE scores_2 SET logprobs = ? WHERE key = ?", [(change(b), k) for k, b in rows])
    database.close()
    return len(rows)


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_entry_is_computed_again(kind):
    model = tiny_model()
    first = model.logprobs(QUERIES)
    assert damage(DAMAGES[kind]) == 2
    assert model.logprobs(QUERIES) == first
    assert model.pair_scores(QUERIES) == tiny_model().pair_scores(QUERIES)


def test_entries_that_changed_places_are_computed_again():
    """Each is sound by itself, and belongs to another row."""
    model = tiny_model()
    asked = [Query(chat("Which tea?"), ("A green one.", "A white one."))]
    first = model.logprobs(asked)
    database = sqlite3.connect(cache_dir() / "scores.sqlite")
    with database:
        (a, x), (b, y) = database.execute("SELECT key, logprobs FROM scores_2").fetchall()
        database.executemany("UPDATE scores_2 SET logprobs = ? WHERE key = ?", [(y, a), (x, b)])
    database.close()
    assert model.logprobs(asked) == first


@pytest.mark.parametrize("values", [[float("nan")] * 12, [-1e400] * 12, [0.5] * 12, [-1.0] * 11])
def test_numbers_that_cannot_be_log_probs_are_computed_again_whatever_their_checksum(values):
    model = tiny_model()
    first = model.logprobs(QUERIES)
    database = sqlite3.connect(cache_dir() / "scores.sqlite")
    with database:
        for (key,) in database.execute("SELECT key FROM scores_2").fetchall():
            content = array("d", values).tobytes()
            forged = content + xxhash.xxh3_64_digest(key + content)
            database.execute("UPDATE scores_2 SET logprobs = ? WHERE key = ?", (forged, key))
    database.close()
    assert model.logprobs(QUERIES) == first


def test_a_damaged_file_whose_bytes_are_no_text_is_named():
    """SQLite quotes them in its message, which Python then cannot decode (found by fuzzing)."""
    tiny_model().logprobs(QUERIES)
    path = cache_dir() / "scores.sqlite"
    content = path.read_bytes()
    assert content.count(b"tablescores_2") == 1
    path.write_bytes(content.replace(b"tablescores_2", b"table\x80cores_2"))
    with pytest.raises(StorageError, match=r"score cache .*damaged") as caught:
        tiny_model().logprobs(QUERIES)
    assert "deleted" in caught.value.hint


def test_training_does_not_take_a_damaged_reference():
    """Of the first step the margin is zero: the model is its own reference."""
    dpo = Dpo(weights=Weights(rank=2), training=Training(max_steps=1))
    losses = []
    for _ in range(2):
        ctx = context(guard=Guard(mode="none"), on_step=lambda row, _: losses.append(row))
        dpo.apply(tiny_model(), pairs(), ctx)
        assert damage(flip)
    assert losses[0]["margin"] == losses[1]["margin"] == pytest.approx(0.0, abs=1e-5)


def test_entries_of_a_tree_that_knows_no_checksums_are_left_alone():
    """Of the same version it has the same keys: it would take a checksum for one more log-prob, and we its entry."""
    model = tiny_model()
    first = model.logprobs(QUERIES)
    database = sqlite3.connect(cache_dir() / "scores.sqlite")
    with database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        assert tables == ["scores_2"]
        database.execute("CREATE TABLE scores (key BLOB PRIMARY KEY, logprobs BLOB) WITHOUT ROWID")
        rows = [(key, blob[:-8]) for key, blob in database.execute("SELECT key, logprobs FROM scores_2")]
        database.executemany("INSERT INTO scores VALUES (?, ?)", rows)
    assert model.logprobs([*QUERIES, Query(chat("Another?"), ("Yes.", "No."))])[0] == first[0]
    assert database.execute("SELECT key, logprobs FROM scores").fetchall() == rows
    database.close()


@pytest.mark.parametrize("mask", [0o002, 0o022, 0o077])
def test_the_cache_has_the_users_own_mask(mask):
    before = os.umask(mask)
    try:
        tiny_model().logprobs(QUERIES)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in cache_dir().glob("scores.sqlite*")}
    assert modes == {"scores.sqlite": 0o666 & ~mask}
