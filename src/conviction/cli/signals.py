"""What ends a command from outside: SIGTERM and SIGHUP like Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["ended_by_signals"]

NAMES = ("SIGTERM", "SIGHUP")  # a scheduler or ``kill``; a terminal that was closed. Not all platforms have them


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """In the block these signals raise KeyboardInterrupt, so that a run's status becomes 'interrupted'.

    One that is ignored (``nohup``) or handled by somebody else stays as it is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [number for name in NAMES if (number := getattr(signal, name, None)) is not None]
    ours = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
