"""Lines of text files, packed or not, as they come from the disk."""

from __future__ import annotations

import gzip
import io
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

from conviction.core.gate import Unpacked, open_file
from conviction.core.protocols import Progress
from conviction.core.wording import printable
from conviction.errors import InputError

__all__ = ["not_utf8", "read_lines", "whole_text"]

_BATCH = 1000  # lines between two reports of progress
_LINE_BYTES = 64 * 2**20  # of one line
_WHOLE = 2**30  # characters of what is held in memory as a whole: one list of JSON, a text


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what can go wrong with the bytes of a file into an InputError."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(
            f"{printable(path)}: not a whole gzip file ({error})", hint="copy or download the file again"
        ) from error
    except OverflowError as error:
        raise InputError(
            f"{printable(path)}: {error}", hint="unpack it, if it is meant to, and give the file itself"
        ) from error
    except OSError as error:
        raise InputError(
            f"{printable(path)}: {error.strerror or error}", hint="check that the file can be read"
        ) from error


def read_lines(path: Path, progress: Progress | None) -> Iterator[str]:
    """Lines with their ends; bytes that are not UTF-8 stand as lone surrogates (``not_utf8`` finds them).

    Cut at line feeds only: U+2028 and its like may stand within a text.
    """
    with _reading(path), open_file(path, InputError, hint="check that the file can be read") as stored:
        size = os.fstat(stored.fileno()).st_size
        packed = path.suffix.lower() == ".gz"
        file: BinaryIO = io.BufferedReader(Unpacked(gzip.GzipFile(fileobj=stored), stored), 2**16) if packed else stored
        for number, raw in enumerate(iter(partial(file.readline, _LINE_BYTES + 1), b""), start=1):
            if len(raw) > _LINE_BYTES:
                problem = f"{printable(path)}:{number}: a line of more than {_LINE_BYTES // 2**20} MB"
                raise InputError(problem, hint="write one row a line")
            yield raw.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape")
            if progress is not None and number % _BATCH == 0:
                progress(stored.tell(), size)


def whole_text(lines: Iterable[str], path: Path) -> str:
    """All lines in one, which have to fit into memory."""
    parts, size = list[str](), 0
    for line in lines:
        parts.append(line)
        size += len(line)
        if size > _WHOLE:
            hint = "write one JSON object a line (.jsonl), which is read line by line, or several files"
            raise InputError(f"{printable(path)}: more than {_WHOLE // 2**30} GB, to be read as a whole", hint=hint)
    return "".join(parts)


def not_utf8(text: str, part: str = "line") -> str | None:
    """What is wrong with a text that holds bytes which are not UTF-8."""
    if text.isascii():
        return None
    result = re.search("[\udc80-\udcff]", text)
    if result is None:
        return None
    line = text[: result.start()].rpartition("\n")[2]
    return f"not UTF-8 (byte {len(line.encode(errors='surrogateescape'))} of the {part})"
