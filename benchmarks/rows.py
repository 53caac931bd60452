"""Rows of a battery that goes on where it was: one line of JSON each, and a lock for those who share a machine."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def stored(path: Path) -> list[dict[str, Any]]:
    """The rows that are there; none without a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def append(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add rows at the end."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@contextmanager
def locked(path: Path | None) -> Iterator[None]:
    """Nobody else is in such a block on the same file meanwhile; None: no lock is wanted."""
    if path is None:
        yield
        return
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
