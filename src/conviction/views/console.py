"""The terminal: the one place where text leaves the program.

Whatever a stranger's text holds, a terminal obeys none of it: controls and escapes are shown as such. A reader that
went away (``| head -1``) stops no work: the command goes on, and its exit code says how that ended.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import IO, Any

from rich.console import Console, RenderableType
from rich.table import Column, Table
from rich.text import Text

from conviction.core.storage import finite_or_null
from conviction.core.wording import printable_json, printable_lines
from conviction.errors import StorageError

__all__ = ["cell", "err", "flush", "grid", "log", "out", "print_line", "print_table", "write", "write_json"]

NARROWEST, USUAL = 20, 80  # columns


def _console(*, stderr: bool = False) -> Console:
    """A console whose width can be used: with COLUMNS=0 nothing at all would be printed."""
    console = Console(stderr=stderr, highlight=False)
    if console.width < NARROWEST:
        console.width = USUAL
    return console


out = _console()
err = _console(stderr=True)


def prepare() -> None:
    """Let stdout take any text: what its encoding lacks is an escape. Libraries' logs are made printable."""
    logging.setLogRecordFactory(_printable_record)
    warnings.formatwarning = _printable_warning
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            with suppress(OSError, ValueError):  # a stream that is closed, or was made another one behind Python's back
                stream.reconfigure(errors="backslashreplace")


def _printable_record(*arguments: Any, **named: Any) -> logging.LogRecord:
    """A library's log line, which may quote a stranger's file."""
    record = logging.LogRecord(*arguments, **named)
    with suppress(TypeError, ValueError):  # arguments that do not fit: logging reports that itself
        record.msg, record.args = printable_lines(record.getMessage()), None
    return record


def _printable_warning(message: Warning | str, *where: Any, **named: Any) -> str:
    return printable_lines(_PLAIN_WARNING(message, *where, **named))


_PLAIN_WARNING = warnings.formatwarning


def write(text: str) -> None:
    """Text on stdout, as it is but for what a terminal would obey."""
    _send(out, printable_lines(text))


def write_json(value: Any) -> None:
    """One JSON value on stdout; what is not a finite number becomes null."""
    _send(out, as_json(value, indent=1, encoding=out.encoding) + "\n")


def as_json(value: Any, *, indent: int | None = None, encoding: str = "utf-8") -> str:
    """JSON that can be shown anywhere: what a terminal would obey, or the encoding lacks, in JSON's own escapes."""
    ascii_only = not encoding.lower().replace("-", "").startswith("utf")
    return printable_json(json.dumps(finite_or_null(value), indent=indent, ensure_ascii=ascii_only, allow_nan=False))


def print_line(text: str = "", style: str = "", *, wrap: bool = True) -> None:
    """A line on stdout. wrap: at the width of the terminal, between words; else where the terminal does it."""
    _print(out, Text(printable_lines(text), style=style), wrap=wrap)


def print_table(table: Table) -> None:
    """A table on stdout, of cells that ``cell`` made."""
    _print(out, table)


def log(text: str, style: str = "dim") -> None:
    """One line of what is going on, on stderr."""
    _print(err, Text(printable_lines(text), style=style), wrap=False)


def cell(text: str, style: str = "") -> Text:
    """A foreign text in a table: markup in it stays text."""
    return Text(printable_lines(text), style=style)


def grid(lines: Iterable[Sequence[str]]) -> Table:
    """Labels and values, indented under a title; a word that is too long, as a path in a command, is folded."""
    table = Table.grid("", "", Column(overflow="fold"), padding=(0, 2))
    for label, value in lines:
        table.add_row("", cell(label), cell(value))
    return table


def flush() -> None:
    """Send what is held back. Raises StorageError where stdout cannot be written, as on a full disk."""
    for console in (err, out):
        _guarded(console, console.file, "")


def _print(console: Console, what: RenderableType, *, wrap: bool = True) -> None:
    if console.is_terminal:
        console.print(what, soft_wrap=not wrap)
        return
    page = io.StringIO()  # rich itself would end the program where a pipe is closed
    Console(file=page, width=console.width, highlight=False, color_system=None).print(what, soft_wrap=not wrap)
    _send(console, page.getvalue())


def _send(console: Console, text: str) -> None:
    _guarded(console, console.file, text)


def _guarded(console: Console, stream: IO[str], text: str) -> None:
    """Write, or flush where there is nothing to write; a stream that takes no more is not tried again."""
    try:
        stream.write(text) if text else stream.flush()
    except BrokenPipeError:
        _discard(stream)
    except OSError as error:
        _discard(stream)
        if console is out:  # without its log a command is still of use, without its result it is not
            raise StorageError(
                f"writing the result to stdout: {error.strerror or error}",
                hint="free some space where it is written to; the run folder, if there is one, has the result",
            ) from error


def _discard(stream: IO[str]) -> None:
    """Let a stream's rest go nowhere: what it holds back would fail again at the end of the program."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
