"""The disk: where the cache lies, atomic writes, and errors that say what to do."""

from __future__ import annotations

import math
import os
import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import platformdirs

from conviction.errors import ConvictionError, InputError, StorageError


def cache_dir() -> Path:
    """``$CONVICTION_CACHE``, else the platform's cache folder. Safe to delete at any time."""
    chosen = os.environ.get("CONVICTION_CACHE")
    return user_path(chosen) if chosen else platformdirs.user_cache_path("conviction", appauthor=False)


@contextmanager
def storage_errors(doing: str) -> Iterator[None]:
    """Turn what the operating system says about the disk into a StorageError."""
    try:
        yield
    except ConvictionError:
        raise
    except (OSError, sqlite3.Error) as error:
        raise StorageError(
            f"{doing}: {getattr(error, 'strerror', None) or error}",
            hint="free some space or make the folder writable (CONVICTION_CACHE and --run choose others); "
            "a damaged cache may be deleted",
        ) from error


def user_path(text: str | Path) -> Path:
    """A path as a user writes it; an unknown ``~user`` stays as it is, and is then not found.

    Raises InputError for what no path can hold: NUL, half a character.
    """
    path = os.path.expanduser(text)  # noqa: PTH111  Path.expanduser raises for an unknown user
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError:
        encoded = b"\0"
    if b"\0" in encoded:
        raise InputError(f"{str(text)!a} is no path: it holds NUL, or half a character", hint="check the name")
    return Path(path)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that it is either there whole or not at all; text as UTF-8."""
    write_lines_atomic(path, (content,))


def write_lines_atomic(path: Path, lines: Iterable[str | bytes]) -> None:
    """The same with lines that come one by one; they bring their own ends."""
    with ExitStack() as stack:
        with storage_errors(f"writing {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            work = path.with_name(f".{path.name[:80]}-{secrets.token_hex(8)}")
            # the user's own umask, where mkstemp's 0600 would keep a group from its results
            descriptor = os.open(work, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            stack.callback(work.unlink, missing_ok=True)
            file = stack.enter_context(os.fdopen(descriptor, "wb"))
        for line in lines:  # what goes wrong in making a line is not the disk's fault
            with storage_errors(f"writing {path}"):
                file.write(line.encode() if isinstance(line, str) else line)
        with storage_errors(f"writing {path}"):
            file.flush()
            os.fsync(file.fileno())
            file.close()
            work.replace(path)


def finite_or_null(value: Any) -> Any:
    """A value as JSON can hold it: what is not a finite number becomes null."""
    if isinstance(value, Mapping):
        return {name: finite_or_null(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_null(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
