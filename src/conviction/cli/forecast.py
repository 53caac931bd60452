"""The command `forecast`."""

from __future__ import annotations

from typing import Annotated

import typer

from conviction.cli.options import EXIT_FINDINGS, FormatOption, JobOptions, LoadOptions, RunOption, TestOption
from conviction.cli.page import write_page
from conviction.views.live import watched
from conviction.views.next_steps import show_next_steps
from conviction.views.text import log

__all__ = ["forecast"]


def forecast(
    asked: JobOptions,
    *,
    test: TestOption = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(help="learning_rate=1e-6..1e-3, beta=0.01,0.1: a map. search: what --tune tries."),
    ] = None,
    examples: Annotated[int, typer.Option(help="Trained examples that get gradients of their own.")] = 96,
    pilot: Annotated[int, typer.Option(help="Real steps before the forecast; their weights are not kept.")] = 10,
    load: LoadOptions,
    form: FormatOption = "text",
    run: RunOption = None,
) -> None:
    """Know before training: will it flip, at which settings, and will it break? Exit code 1: not as planned."""
    from conviction.core.run_head import new_folder
    from conviction.verbs import changing
    from conviction.views.forecast import show_forecast

    job, source = asked.read()
    folder = run or new_folder(source.label, f"forecast-{asked.name}")
    with watched() as ctx:
        result = changing.forecast(
            job.plan.intervention, job.model, source.topic or source.data, test=test, sweep=sweep, examples=examples,
            pilot_steps=pilot, guard=job.plan.guard, run=folder, load=load.loader(job.model), ctx=ctx,
        )  # fmt: skip
    show_forecast(result, form)
    show_next_steps(result, asked.names(folder), form)
    log(f"every pair: {folder}/forecast.json")
    write_page(folder)
    if result.verdict.kind not in {"trainable", "none"}:
        raise typer.Exit(EXIT_FINDINGS)
