"""The disk: where the cache lies, atomic writes, and errors that say what to do."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import platformdirs

from conviction.errors import ConvictionError, StorageError

__all__ = ["cache_dir", "storage_errors", "user_path", "write_atomic", "write_lines_atomic"]


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
    """A path as a user writes it; an unknown ``~user`` stays as it is, and is then not found."""
    return Path(os.path.expanduser(text))  # noqa: PTH111  Path.expanduser raises for an unknown user


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that it is either there whole or not at all; text as UTF-8."""
    write_lines_atomic(path, (content,))


def write_lines_atomic(path: Path, lines: Iterable[str | bytes]) -> None:
    """The same with lines that come one by one; they bring their own ends."""
    with ExitStack() as stack:
        with storage_errors(f"writing {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
            stack.callback(Path(name).unlink, missing_ok=True)
            file = stack.enter_context(os.fdopen(descriptor, "wb"))
        for line in lines:  # what goes wrong in making a line is not the disk's fault
            with storage_errors(f"writing {path}"):
                file.write(line.encode() if isinstance(line, str) else line)
        with storage_errors(f"writing {path}"):
            file.flush()
            os.fsync(file.fileno())
            file.close()
            Path(name).replace(path)
