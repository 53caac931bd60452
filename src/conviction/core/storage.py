"""The disk: where the cache lies, atomic writes, and errors that say what to do."""

from __future__ import annotations

import errno
import math
import os
import re
import secrets
import shutil
import sqlite3
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import platformdirs

from conviction.errors import ConvictionError, InputError, StorageError

_PRIVATE = 0o600


def cache_dir() -> Path:
    """``$CONVICTION_CACHE``, else the platform's cache folder. Safe to delete at any time."""
    chosen = os.environ.get("CONVICTION_CACHE")
    return user_path(chosen) if chosen else platformdirs.user_cache_path("conviction", appauthor=False)


@contextmanager
def storage_errors(doing: str) -> Iterator[None]:
    """Turn what the operating system says about the disk into a StorageError, whichever library passes it on."""
    try:
        yield
    except ConvictionError:
        raise
    except Exception as error:
        if not isinstance(error, OSError | sqlite3.Error) and not _RUST.search(str(error)):
            raise
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise StorageError(f"{doing}: {reason}", hint=_storage_hint(error)) from error


_RUST = re.compile(r"\(os error (\d+)\)")
"""How safetensors, tokenizers and Lance pass on what the operating system said."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_CHOICE = "(CONVICTION_CACHE and --run choose others)"


def _storage_hint(error: Exception) -> str:
    text, number = str(error), getattr(error, "errno", None)
    if number is None and (rust := _RUST.search(text)):
        number = int(rust[1])
    if "database is locked" in text:
        return "another process writes into it: wait for that, or give this one a cache of its own by CONVICTION_CACHE"
    if number == errno.ENOMEM:
        return "there is no memory left: close other programs, or take a smaller model"
    if number == errno.ENAMETOOLONG:
        return "give a shorter name"
    if number in _DENIED:
        return f"make it writable, or write elsewhere {_CHOICE}"
    if number in _FULL or "is full" in text:
        return f"free some space, or write elsewhere {_CHOICE}; the same command then goes on"
    return f"free some space or make the folder writable {_CHOICE}; a damaged cache may be deleted"


def user_path(text: str | Path) -> Path:
    """A path as a user writes it; an unknown ``~user`` stays as it is, and is then not found.

    Raises InputError for what no path can hold: NUL, half a character.
    """
    try:
        path = os.path.expanduser(text)  # noqa: PTH111  Path.expanduser raises for an unknown user
        possible = b"\0" not in os.fsencode(path)
    except ValueError:  # of NUL after ~, and of half a character
        possible = False
    if not possible:
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
            work = _work_name(path)
            # the user's own umask, where mkstemp's 0600 would keep a group from its results
            descriptor = os.open(work, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            stack.callback(work.unlink, missing_ok=True)
            file = os.fdopen(descriptor, "wb")
            stack.callback(_close_failed, file)
        for line in lines:  # what goes wrong in making a line is not the disk's fault
            with storage_errors(f"writing {path}"):
                file.write(line.encode() if isinstance(line, str) else line)
        with storage_errors(f"writing {path}"):
            file.flush()
            os.fsync(file.fileno())
            file.close()
            work.replace(path)


def _close_failed(file: BinaryIO) -> None:
    """Close a file, whole or not: what a full disk did not take is refused again here, and was said before."""
    with suppress(OSError):
        file.close()


def new_folder_beside(place: Path) -> Path:
    """An empty folder, with the user's umask, that is to be renamed to ``place`` once everything is in it."""
    work = _work_name(place)
    work.mkdir(parents=True)  # not mkdtemp, whose 0700 would keep a group from its results
    return work


def use_umask(folder: Path) -> None:
    """Give every file in a folder and below the mode that the user's umask asks for: safetensors makes them 0600."""
    with storage_errors(f"writing {folder}"):
        work = _work_name(folder / "mode")
        descriptor = os.open(work, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        usual = stat.S_IMODE(os.fstat(descriptor).st_mode)  # os.umask() would change it for other threads meanwhile
        os.close(descriptor)
        work.unlink()
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) == _PRIVATE:
                path.chmod(usual)


def is_unfinished(path: Path) -> bool:
    """Whether a name is one that a file or a folder has until it is whole: left there, its writer was killed."""
    return _UNFINISHED.fullmatch(path.name) is not None


def clear_unfinished(folder: Path) -> None:
    """Remove what killed processes have left half-written in a folder and below. Nobody may be writing there."""
    for path in [path for path in folder.rglob(".unfinished-*") if is_unfinished(path)]:
        with storage_errors(f"removing {path}"):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


_UNFINISHED = re.compile(r"\.unfinished-[0-9a-f]{16}")


def _work_name(place: Path) -> Path:
    """Independent of the place's own name, which may have as many bytes as the file system allows."""
    return place.with_name(f".unfinished-{secrets.token_hex(8)}")


def finite_or_null(value: Any) -> Any:
    """A value as JSON can hold it: what is not a finite number becomes null."""
    if isinstance(value, Mapping):
        return {name: finite_or_null(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_null(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
