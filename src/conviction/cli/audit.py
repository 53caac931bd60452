"""The command `audit`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from conviction.cli.options import EXIT_FINDINGS, ColumnsOption, LoadOptions, RunOption
from conviction.cli.page import write_page
from conviction.views.findings import AuditFormat, show_audit
from conviction.views.live import watched
from conviction.views.next_steps import show_next_steps

if TYPE_CHECKING:
    from conviction.reporting.next_steps import Names

__all__ = ["audit"]


def audit(
    data: Annotated[str, typer.Argument(help="A file, a folder, a hub name; or a topic, whose own pairs are meant.")],
    *,
    columns: ColumnsOption = None,
    model: Annotated[str | None, typer.Option(help="The model to be trained, for what depends on it.")] = None,
    topic: Annotated[str | None, typer.Option(help="What the pairs are to teach, for leaks and poles.")] = None,
    select: Annotated[str | None, typer.Option(help="Only these codes or names, with commas: PD1,length-gap")] = None,
    ignore: Annotated[str | None, typer.Option(help="Not these codes or names.")] = None,
    beta: Annotated[float, typer.Option(help="Of the loss that is planned, for margins.")] = 0.1,
    split: Annotated[str, typer.Option(help="Within a folder or a hub data set.")] = "train",
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 for notes, too.")] = False,
    details: Annotated[bool, typer.Option("--details", help="All evidence, and what every rule measured.")] = False,
    fix: Annotated[bool, typer.Option("--fix", help="Write a cleaned copy, and audit that.")] = False,
    output: Annotated[Path | None, typer.Option(help="Where --fix writes; else NAME.fixed.jsonl.")] = None,
    load: LoadOptions,
    form: Annotated[AuditFormat, typer.Option("--format", help="How to print the result.")] = "text",
    run: RunOption = None,
) -> None:
    """A linter for preference data. Exit code 1: something was found."""
    from conviction.data.columns import parse_columns
    from conviction.verbs import measuring

    with watched() as ctx:
        report = measuring.audit(
            data,
            topic=topic,
            model=model or None,
            select=select or "",
            ignore=ignore or "",
            beta=beta,
            split=split,
            columns=parse_columns(columns),
            fix=fix,
            output=output,
            run=run,
            load=load.loader(model or None),
            ctx=ctx,
        )
    show_audit(report, form, details=details)
    if form in ("text", "md"):
        show_next_steps(report, _names(data, model), "md" if form == "md" else "text")
    if run is not None:
        write_page(run)
    if report.failed(strict=strict):
        raise typer.Exit(EXIT_FINDINGS)


def _names(data: str, model: str | None) -> Names:
    """A topic's own pairs are trained on by the topic's name, others as data."""
    from conviction.data.topic import names_topic
    from conviction.reporting.next_steps import Names

    return Names(model=model, topic=data) if names_topic(data) else Names(model=model, data=data)
