"""Names are not paths: what is checked before a text from a file becomes part of one."""

from __future__ import annotations

import os
import re
import unicodedata
import zlib
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from conviction.core.wording import printable
from conviction.errors import ConvictionError

__all__ = ["check_links", "check_name", "file_name", "inside", "is_name"]

MOST_NAME = 100
"""Characters of a name; file systems allow 255 bytes, and something is put before and after it."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(?<!\.)")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Names of devices on Windows, whatever their ending."""


def is_name(text: Any) -> bool:
    """Whether a text can be one part of a path, here and on every other system: no way up, no root, no device."""
    if not isinstance(text, str) or len(text) > MOST_NAME:
        return False
    return _NAME.fullmatch(text) is not None and _RESERVED.fullmatch(text) is None


def check_name(text: Any, what: str, error: type[ConvictionError]) -> str:
    """The same text, which can be one part of a path. Raises ``error``; what: 'the arm', to be named in it."""
    if not is_name(text):
        raise error(
            f"{what} is named {printable(repr(text)[:120])}, which cannot name a file",
            hint="use letters, digits, '.', '-' and '_', 100 at most",
        )
    return str(text)


def file_name(text: str) -> str:
    """A name of one part for any text: the text itself if it is one, else what is left of it and its checksum.

    Different texts have different names, but for one in four billion.
    """
    if is_name(text):
        return text
    plain = unicodedata.normalize("NFKC", text)
    words = re.sub(r"[^A-Za-z0-9_-]+", "_", plain)[:60].strip("_-")
    checksum = zlib.crc32(text.encode("utf-8", "surrogatepass"))
    return f"{words or 'unnamed'}-{checksum:08x}"


def inside(folder: Path, place: Any, what: str, error: type[ConvictionError]) -> Path:
    """``folder / place``, which lies in the folder, links followed. Raises ``error`` for what lies elsewhere.

    place  a relative path from a file; what: 'items', to be named in the error
    """
    if isinstance(place, str) and _is_relative(place):
        try:
            root, path = os.path.realpath(folder), os.path.realpath(folder / place)
            if os.path.commonpath([root, path]) == root:
                return folder / place
        except (OSError, ValueError):  # too long; a drive, or half a character
            pass
    raise error(
        f"{printable(folder)}: {what} is {printable(repr(place)[:200])}, which is not in that folder",
        hint="give a path within the folder, and no link that leads out of it",
    )


def check_links(folder: Path, error: type[ConvictionError]) -> None:
    """Raise ``error`` for a link in the folder, at any depth, that leads out of it: writing would follow it."""
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            if os.path.islink(path := Path(place, name)):
                inside(folder, str(path.relative_to(folder)), "a link", error)


def _is_relative(place: str) -> bool:
    """Whether a path has no root and no drive on any system, and a file system can hold it."""
    windows = PureWindowsPath(place)
    rooted = PurePosixPath(place).is_absolute() or bool(windows.drive or windows.root)
    return bool(place) and not rooted and "\0" not in place
