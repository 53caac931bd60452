"""The page that a command leaves in its run folder."""

from __future__ import annotations

from pathlib import Path

from conviction.errors import ModelError
from conviction.views.text import log

__all__ = ["write_page"]


def write_page(folder: Path, title: str = "page", *, quiet: bool = False) -> None:
    """Write ``report.html`` beside the result. Pictures that cannot be drawn here do not undo a command's work.

    quiet  do not say where it lies, or why there is none
    """
    from conviction.reporting.page import report

    try:
        line = f"{title}: {report(folder)}"
    except ModelError as error:
        line = f"note: there is no page: {error.message}; {error.hint}"
    if not quiet:
        log(line)
