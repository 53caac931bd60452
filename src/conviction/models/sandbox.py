"""Chat templates and patterns of strangers, run in a process of their own that is ended where they take too long."""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import xxhash

from conviction.errors import ModelError
from conviction.models import sandbox_worker

__all__ = ["LimitExceeded", "TaskFailed", "render", "try_patterns"]

SECONDS = 2
"""Of the processor's time for a task. It is tried twice: on Windows a machine may have slept meanwhile."""
BYTES = 2**30
"""Of the process, all its code included; Windows and macOS do not keep to it."""
_OUT_OF_TIME = -getattr(signal, "SIGPROF", 0)


class LimitExceeded(Exception):  # noqa: N818  named by whoever knows whose template it is
    """A task took more time or memory than it may; the text says which."""


class TaskFailed(Exception):  # noqa: N818
    """A task ended in an error of its own, which the text says."""


def render(source: str, variables: dict[str, Any]) -> str:
    """A chat template's text, as ``tokenizer.apply_chat_template`` renders it. Raises LimitExceeded or TaskFailed."""
    return str(_WORKER.ask("render", template=source, variables=variables))


def try_patterns(patterns: Iterable[str], names: Iterable[str]) -> None:
    """Match all of them as PEFT does. Raises LimitExceeded, or TaskFailed for one that is no pattern."""
    _WORKER.ask("match", patterns=list(patterns), names=list(names))


class _Worker:
    """The process, started when it is first asked; one at a time may ask."""

    _process: subprocess.Popen[bytes] | None = None

    def __init__(self) -> None:
        self._others: list[Any] = []  # of the process that this one was forked from: they are not this one's to close
        self.forget()

    def forget(self) -> None:
        """Begin without a process: a fork shares the pipes of the one that there is, and needs its own."""
        self._lock = threading.Lock()
        self._others.append(self._process)
        self._process = None
        self._known: set[str] = set()

    def ask(self, task: str, *, template: str | None = None, **arguments: Any) -> Any:
        """What the task gives. template: a long text, which is sent once and then known by its hash."""
        with self._lock:
            for _ in range(2):
                answer = self._answer(task, template, arguments)
                if answer is not None:
                    break
        if answer is None or answer.get("limit") == "time":
            raise LimitExceeded(f"it takes more than {SECONDS} seconds")
        if "limit" in answer:
            raise LimitExceeded(f"it takes more than {BYTES // 2**20} MB of memory")
        if "error" in answer:
            raise TaskFailed(answer["error"])
        return answer["result"]

    def _answer(self, task: str, template: str | None, arguments: dict[str, Any]) -> dict[str, Any] | None:
        """One attempt; None where the process ended."""
        process = self._started()
        if template is not None:
            name = xxhash.xxh3_128_hexdigest(template.encode("utf-8", "surrogatepass"))
            arguments = {**arguments, "template": name, "source": None if name in self._known else template}
            self._known.add(name)
        assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018  they are pipes
        try:
            process.stdin.write(json.dumps({"task": task, "arguments": arguments}).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:  # it ended meanwhile
            line = b""
        if not line.endswith(b"\n"):
            return {"limit": "time"} if self.close() == _OUT_OF_TIME else None
        answer: dict[str, Any] = json.loads(line)
        if "limit" in answer:  # what is left of its memory may not do for the next task
            self.close()
        return answer

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None:
            return self._process
        command = [sys.executable, "-I", "-S", str(Path(sandbox_worker.__file__))]
        pipe = subprocess.PIPE
        try:
            process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
        except OSError as error:
            raise ModelError(
                f"no process can be started for the chat template ({error})",
                hint="close other programs, or raise the limit on processes",
            ) from error
        assert process.stdin is not None  # noqa: S101  it is a pipe
        settings = {"path": sys.path, "seconds": SECONDS, "bytes": BYTES}
        process.stdin.write(json.dumps(settings).encode() + b"\n")
        self._process, self._known = process, set()
        return process

    def close(self) -> int | None:
        """End the process, if there is one; how it ended."""
        process, self._process = self._process, None
        if process is None:
            return None
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):  # what was not sent yet
                assert pipe is not None  # noqa: S101  they are pipes
                pipe.close()
        with suppress(subprocess.TimeoutExpired):  # it ends with its stdin, or has ended, and says how
            return process.wait(timeout=0.5)
        process.kill()
        return process.wait()


_WORKER = _Worker()
atexit.register(_WORKER.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_WORKER.forget)
