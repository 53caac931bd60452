"""The gate: every file that a stranger may have written is read through here, and every text in it parsed here.

Nothing that lies in such a file may hang a command, fill the memory or end in a traceback:

- only regular files are opened: a FIFO, a device, a socket or a folder is refused, and not waited for;
- a file, and what a compressed one unpacks to, has a largest size;
- a text is UTF-8 without a NUL; JSON has a largest depth, integers a most of digits, numbers are finite and texts
  hold whole characters (``gate_yaml`` does the same for YAML, ``names`` for what becomes part of a path);
- a record is validated by its schema.

Each function takes the error of the tree to raise (``error``) and what to do about it (``hint``); the message
names the file, and the line or the field.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pydantic import BaseModel, ValidationError

from conviction.core.wording import printable
from conviction.errors import ConvictionError

__all__ = [
    "MOST_DEPTH",
    "MOST_DIGITS",
    "Unpacked",
    "first_fault",
    "is_file",
    "json_value",
    "lines_of",
    "open_file",
    "parse_json",
    "read_json",
    "read_text",
    "unfit",
    "validate",
]

Record = TypeVar("Record", bound=BaseModel)

MOST_BYTES = 256 * 2**20
"""Of a file that is read as a whole."""
MOST_DEPTH = 64
"""Lists and objects within each other; the deepest record of ours has 12."""
MOST_DIGITS = 100
"""Of an integer; a 256-bit hash has 78."""
UNPACKED_BYTES, UNPACKED_TIMES = 16 * 2**20, 50
"""What a compressed file may unpack to: so many bytes, or so many times what was read of it."""

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO (named pipe)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_HALF = re.compile("[\ud800-\udfff]")


# -- files -------------------------------------------------------------------------


def is_file(path: Path) -> bool:
    """Whether there is a regular file; no path is an error."""
    return os.path.isfile(path)  # Path.is_file raises for what is too long, or in a folder that cannot be entered


def open_file(path: Path, error: type[ConvictionError], *, hint: str = "check the path") -> io.BufferedReader:
    """A regular file, open for reading. Raises ``error`` for anything else, and does not wait for a writer."""
    try:
        _check_regular(Path(path).stat().st_mode, path, error)
        # a FIFO may have taken the file's place meanwhile: without O_NONBLOCK, opening it would wait
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as fault:
        if isinstance(fault, ConvictionError):
            raise
        hint = "check that you may read it" if isinstance(fault, PermissionError) else hint
        raise error(f"{printable(path)}: {getattr(fault, 'strerror', None) or fault}", hint=hint) from fault
    try:
        _check_regular(os.fstat(descriptor).st_mode, path, error)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _check_regular(mode: int, path: Path, error: type[ConvictionError]) -> None:
    if not stat.S_ISREG(mode):
        what = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise error(f"{printable(path)}: this is {what}, not a file", hint="give a regular file")


def read_text(path: Path, error: type[ConvictionError], *, hint: str = "check the path", most: int = MOST_BYTES) -> str:
    """A whole text file, of ``most`` bytes at most. Raises ``error`` for what is no text in UTF-8."""
    try:
        with open_file(path, error, hint=hint) as file:
            content = file.read(most + 1)
    except OSError as fault:
        if isinstance(fault, ConvictionError):
            raise
        raise error(f"{printable(path)}: {fault.strerror or fault}", hint=hint) from fault
    if len(content) > most:
        size = f"{most / 2**20:g} MB" if most >= 2**20 else f"{most / 2**10:g} kB"
        raise error(f"{printable(path)}: larger than {size}, the most that is read of such a file", hint=hint)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as fault:
        raise error(f"{printable(path)}: not UTF-8 (byte {fault.start})", hint="save the file as UTF-8") from fault
    if (place := text.find("\0")) >= 0:
        raise error(f"{printable(path)}: not a text (character {place} is NUL)", hint="give a text file in UTF-8")
    return text


class Unpacked(io.RawIOBase):
    """What a compressed file unpacks to, as far as it may: a stream that ends in OverflowError.

    stored  the file itself, whose position says how much was read of it
    """

    def __init__(self, unpacking: Any, stored: BinaryIO) -> None:
        super().__init__()
        self._unpacking, self._stored, self._bytes = unpacking, stored, 0

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer; the number of bytes."""
        content = self._unpacking.read(len(buffer))
        self._bytes += len(content)
        if self._bytes > UNPACKED_BYTES and self._bytes > UNPACKED_TIMES * self._stored.tell():
            raise OverflowError(f"it unpacks to more than {UNPACKED_TIMES} times its size")
        buffer[: len(content)] = content
        return len(content)


# -- JSON --------------------------------------------------------------------------


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits")
    return int(digits)


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


_DECODER = json.JSONDecoder(parse_int=_integer, parse_constant=_no_number)
json_value = json.JSONDecoder(parse_int=_integer).decode
"""A text of JSON as a value: the fast half of ``parse_json``, for rows, whose fields are checked by who reads them.

Raises ValueError, or RecursionError. NaN and the like are values here.
"""


def parse_json(text: str, where: str, error: type[ConvictionError], *, hint: str) -> Any:
    """A value of JSON without depth bombs, giant integers, numbers that are not finite and halves of characters.

    where  file, and line if it is one of several
    """
    try:
        value = _DECODER.decode(text)
    except RecursionError as fault:
        raise error(f"{where}: nested more than {MOST_DEPTH} deep", hint=hint) from fault
    except json.JSONDecodeError as fault:
        line = f"line {fault.lineno}, " if fault.lineno > 1 else ""
        raise error(f"{where}: not JSON ({fault.msg}, {line}column {fault.colno})", hint=hint) from fault
    except ValueError as fault:
        raise error(f"{where}: not JSON ({fault})", hint=hint) from fault
    if (problem := unfit(value)) is not None:
        raise error(f"{where}: {problem}", hint=hint)
    return value


def read_json(path: Path, error: type[ConvictionError], *, hint: str, most: int = MOST_BYTES) -> Any:
    """The value in a JSON file: ``read_text`` and ``parse_json``."""
    return parse_json(read_text(path, error, hint=hint, most=most), printable(path), error, hint=hint)


def unfit(value: Any) -> str | None:
    """What a parsed value holds that no record may: the field and what is wrong with it; None: nothing.

    Too deep a nesting, an integer of too many digits, a number that is not finite, half a character.
    """
    waiting: list[tuple[Any, tuple[Any, ...]]] = [([value], ())]
    while waiting:
        parent, path = waiting.pop()
        if len(path) > MOST_DEPTH:
            return f"nested more than {MOST_DEPTH} deep"
        if type(parent) is dict and any(type(k) is str and not k.isascii() and _HALF.search(k) for k in parent):
            return _at(path, "a name with half a character (a lone surrogate)")
        for name, one in parent.items() if type(parent) is dict else enumerate(parent):
            kind = type(one)
            if kind is str:
                if not one.isascii() and _HALF.search(one) is not None:
                    return _at((*path, name), "half a character (a lone surrogate)")
            elif kind is float:
                if not math.isfinite(one):
                    return _at((*path, name), f"{one} is no finite number")
            elif kind is int:
                if one.bit_length() > MOST_DIGITS * 3.33:
                    return _at((*path, name), f"a number of more than {MOST_DIGITS} digits")
            elif kind is dict or kind is list:
                waiting.append((one, (*path, name)))
    return None


def _at(path: tuple[Any, ...], problem: str) -> str:
    field = ".".join(printable(part)[:80] for part in path[1:])  # the first is the place in a list of one
    return f"field '{field}': {problem}" if field else problem


# -- records -----------------------------------------------------------------------


def validate(kind: type[Record], value: Any, where: str, error: type[ConvictionError], *, hint: str) -> Record:
    """A record out of a parsed value. Raises ``error``, naming the field."""
    if not isinstance(value, dict):
        raise error(f"{where}: a {type(value).__name__}, not an object with fields", hint=hint)
    try:
        return kind.model_validate(value)
    except ValidationError as fault:
        raise error(f"{where}: {first_fault(fault)}", hint=hint) from fault
    except RecursionError as fault:
        raise error(f"{where}: nested too deep", hint=hint) from fault


def first_fault(error: ValidationError) -> str:
    """The first fault of a validation, as field and message."""
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = ".".join(printable(part)[:80] for part in fault["loc"])
    message = printable(str(fault["msg"]).removeprefix("Value error, "))
    return f"field '{field}': {message}" if field else message


def lines_of(text: str) -> Iterator[tuple[int, str]]:
    """Number and text of every line that is not blank.

    Cut at line feeds only: U+2028 and its like may stand within a JSON string, where ``splitlines`` would cut, too.
    """
    return ((number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip())
