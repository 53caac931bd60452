"""The command `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from conviction.views.console import log, write

__all__ = ["report"]


def report(
    run: Annotated[Path, typer.Argument(help="A run folder: of a study, an intervention or a probe.")],
    form: Annotated[Literal["html", "md"], typer.Option("--format", help="A page, or a text for an issue.")] = "html",
    png: Annotated[bool, typer.Option("--png", help="Also every picture as a file, in RUN/pictures.")] = False,
) -> None:
    """One page out of a run folder, that works offline."""
    from conviction.reporting.page import report as build
    from conviction.reporting.page import report_markdown

    if form == "md":
        write(report_markdown(run))
        return
    log(f"page: {build(run, pictures=png, log=log)}")
