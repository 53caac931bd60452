"""The command `audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from conviction.cli.options import EXIT_FINDINGS, BackendOption, DeviceOption, DtypeOption, TrustOption, load_named
from conviction.views.findings import AuditFormat, change_lines, show_audit
from conviction.views.text import log, progress_bars

__all__ = ["audit"]


def audit(
    data: Annotated[str, typer.Argument(help="A file, a folder, a hub name; or a topic, whose own pairs are meant.")],
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
    backend: BackendOption = "transformers",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    trust_remote_code: TrustOption = False,
    form: Annotated[AuditFormat, typer.Option("--format", help="How to print the result.")] = "text",
) -> None:
    """A linter for preference data. Exit code 1: something was found."""
    from conviction.auditing.linter import audit as find_faults
    from conviction.auditing.linter import choose_rules
    from conviction.auditing.planning import plan_audit
    from conviction.core.context import Callbacks, RunContext
    from conviction.training.guard import Guard

    chosen, ignored = _names(select), _names(ignore)
    rules = choose_rules(chosen, ignored)
    plan = plan_audit(data, topic=topic, split=split, beta=beta, fix=fix, output=output)
    loaded = load_named(model, backend, device, dtype, trust_remote_code) if model else None
    with progress_bars() as bars:
        ctx = RunContext(callbacks=Callbacks(log=log, progress=bars))
        changes = plan.write_copy(rules, ctx)
        if changes is not None:
            for line in (f"wrote {plan.target}", *change_lines(changes)):
                log(line)
        report = find_faults(
            plan.data,
            topic=plan.topic,
            model=loaded,
            select=chosen,
            ignore=ignored,
            beta=beta,
            margin_cap=Guard().margin_cap,
            split=plan.split,
            ctx=ctx,
        )
    show_audit(report, form, details=details)
    if report.failed(strict=strict):
        raise typer.Exit(EXIT_FINDINGS)


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]
