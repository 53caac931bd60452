"""The page that a command leaves in its run folder."""

from __future__ import annotations

from pathlib import Path

from conviction.errors import ModelError
from conviction.views.text import log

__all__ = ["write_page"]


def write_page(folder: Path) -> None:
    """Write ``report.html`` beside the result. Pictures that cannot be drawn here do not undo a command's work."""
    from conviction.reporting.page import report

    try:
        log(f"page: {report(folder)}")
    except ModelError as error:
        log(f"note: there is no page: {error.message}; {error.hint}")
