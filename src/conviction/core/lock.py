"""One process at a time: a lock file that says who holds it."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import NoReturn

from conviction.core.gate import read_text
from conviction.core.storage import storage_errors, write_atomic
from conviction.core.wording import printable
from conviction.errors import RunError

__all__ = ["only_one"]

HOLDER = ".by"
"""Ends the name of the file beside a lock that says who holds it: what is in the lock itself is filelock's."""
LONGEST = 2**20  # bytes of it that are read: a command may have long arguments
SHOWN = 120  # characters of a command that are shown


@contextmanager
def only_one(
    lock: Path, what: str, *, hint: str, wait: float = 0.0, log: Callable[[str], None] = lambda _: None
) -> Iterator[None]:
    """No other process is in such a block on the same lock file meanwhile.

    what  is written in the block, for messages; wait: seconds after which a lock that is held is an error
    log   is told who holds it, where that is waited for

    Raises RunError, which names the process that holds it, or StorageError for a file that cannot be made.
    """
    from filelock import FileLock, Timeout

    if os.path.islink(lock):  # a stranger's, which may lead to any file
        raise RunError(f"{printable(lock)} is a link", hint="remove it")
    held = FileLock(lock, timeout=0)
    with storage_errors(f"writing {what}"):
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            held.acquire()
        except Timeout as error:
            if not wait:
                _refuse(lock, what, hint, error)
            log(f"waiting for {what}: {_holder(lock)} writes into it")
            try:
                held.acquire(timeout=wait)
            except Timeout as error:
                _refuse(lock, what, hint, error)
    try:
        with suppress(OSError):  # the lock holds without the name of its holder
            write_atomic(_beside(lock), _own_name())
        yield
    finally:
        with suppress(OSError):
            _beside(lock).unlink()  # a folder that is passed on tells of no process
        held.release()


def _beside(lock: Path) -> Path:
    return lock.with_name(f"{lock.name}{HOLDER}")


def _refuse(lock: Path, what: str, hint: str, error: Exception) -> NoReturn:
    raise RunError(f"another command writes into {what}: {_holder(lock)}", hint=hint) from error


def _own_name() -> str:
    since = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
    return json.dumps(
        {"pid": os.getpid(), "host": platform.node(), "command": shlex.join(sys.argv[1:]), "since": since}
    )


def _holder(lock: Path) -> str:
    """Who holds the lock, as far as that is known."""
    try:
        known = json.loads(read_text(_beside(lock), RunError, most=LONGEST))
        place = "" if known["host"] == platform.node() else f" on {known['host']}"
        command = printable(str(known["command"]))
        command = command if len(command) <= SHOWN else f"{command[:SHOWN]}…"
        return printable(f"process {known['pid']}{place} (conviction {command}), since {known['since']}")
    except (RunError, ValueError, TypeError, KeyError, RecursionError):
        return "a process that did not say which"
