"""The command `apply`."""

from __future__ import annotations

from typing import Annotated

import typer

from conviction.cli.options import (
    EXIT_FINDINGS,
    FormatOption,
    JobOptions,
    LoadOptions,
    RunOption,
    TestOption,
    TuneOption,
    minutes_of,
)
from conviction.cli.page import write_page
from conviction.errors import InputError
from conviction.views.live import watched
from conviction.views.next_steps import show_next_steps
from conviction.views.text import log

__all__ = ["apply"]


def apply(
    asked: JobOptions,
    *,
    forecast_first: Annotated[
        bool, typer.Option("--forecast", help="Write a forecast into the run folder first.")
    ] = False,
    test: TestOption = None,
    tune: TuneOption = "off",
    track: Annotated[str | None, typer.Option(help="tensorboard, wandb, mlflow or trackio.")] = None,
    load: LoadOptions,
    form: FormatOption = "text",
    run: RunOption = None,
) -> None:
    """Change a model, under a guard that stops before it breaks. Exit code 1: it was stopped."""
    from conviction.core.context import main_process, several_processes
    from conviction.core.run_head import new_folder
    from conviction.verbs import changing
    from conviction.views.outcome import show_outcome

    job, source = asked.read()
    if several_processes() and run is None:
        raise InputError("several processes need one run folder", hint="give --run a folder")
    folder = run or new_folder(source.label, f"apply-{asked.name}")
    with watched(steps=True) as ctx:
        outcome = changing.apply(
            job.plan, job.model, source.topic or source.data, guard=job.plan.guard, run=folder, tracker=track,
            tune_minutes=minutes_of(tune), forecast_first=forecast_first, test=test, load=load.loader(job.model),
            ctx=ctx,
        )  # fmt: skip
    if main_process():
        show_outcome(outcome, str(folder), form)
        show_next_steps(outcome, asked.names(folder), form, forecast=forecast_first)
        log(f"every step: {folder}/steps.jsonl" if outcome.training else f"every number: {folder}/outcome.json")
        write_page(folder)
    if outcome.guard_stop:
        raise typer.Exit(EXIT_FINDINGS)
