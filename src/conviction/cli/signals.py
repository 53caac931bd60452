"""What ends a command from outside: SIGTERM and SIGHUP like Ctrl-C. Nothing slow is imported here."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

__all__ = ["EXIT_ERROR", "HINT", "INTERRUPTED", "end_at_once", "ended_by_signals", "wants_json"]

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
"""Ctrl-C; a scheduler or ``kill``; a terminal that was closed. Not all platforms have all of them."""
INTERRUPTED = "interrupted"
HINT = "what was finished is kept: the same command, with its --run FOLDER, goes on from there"
EXIT_ERROR = 2


def end_at_once() -> None:
    """From now on these signals end the process with the error of a command that is interrupted, and exit code 2.

    To be called before anything else is imported, where Python would show a traceback. While a command works,
    ``ended_by_signals`` lets it end its work in order. A signal that is ignored (``nohup``) or handled by somebody
    else stays so.
    """
    for number in _signals():
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _end)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """In the block these signals raise KeyboardInterrupt, so that a run's status becomes 'interrupted'.

    One that is ignored (``nohup``) or handled by somebody else stays as it is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _signals()}
    ours = [number for number, handler in before.items() if handler in (signal.SIG_DFL, _end)]
    for number in ours:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])


def wants_json(arguments: Sequence[str]) -> bool:
    """Whether the result, and so an error as well, is asked for as JSON; also where the arguments cannot be parsed."""
    pairs = zip(arguments, [*arguments[1:], ""], strict=True)
    return any(one == "--format=json" or (one == "--format" and after == "json") for one, after in pairs)


def _signals() -> list[signal.Signals]:
    return [getattr(signal, name) for name in NAMES if hasattr(signal, name)]


def _end(_number: int, _frame: FrameType | None) -> None:
    """Nothing was begun, or all of it is done: there is nothing to be put in order, and imports may be half done."""
    text = f"error: {INTERRUPTED}\nhelp: {HINT}\n"
    if wants_json(sys.argv[1:]):
        text = f'{{"error": "{INTERRUPTED}", "help": "{HINT}", "kind": "InputError"}}\n'
    try:
        os.write(2, text.encode())
    finally:
        os._exit(EXIT_ERROR)
