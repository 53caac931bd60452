"""The command `compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from conviction.cli.options import BaseOption, BenignOption, FormatOption, LoadOptions, RunOption
from conviction.cli.page import write_page
from conviction.cli.study import show_result
from conviction.views.live import watched
from conviction.views.next_steps import show_next_steps
from conviction.views.text import log

__all__ = ["compare"]


def compare(
    runs: Annotated[list[Path], typer.Argument(help="One run that was made with --forecast, or several of `apply`.")],
    *,
    topic: Annotated[
        str | None, typer.Option(help="Of several runs: a built-in topic or a folder, if not the first run's own.")
    ] = None,
    model: BaseOption = None,
    benign_steps: BenignOption = None,
    load: LoadOptions,
    form: FormatOption = "text",
    run: RunOption = None,
) -> None:
    """One run: hold its frozen forecast to what happened. Several: a study's table of them."""
    from conviction.verbs import comparing

    with watched() as ctx:
        if len(runs) == 1:
            score = comparing.compare(runs[0], model=model, load=load.loader(), ctx=ctx)
        else:
            result = comparing.compare(
                *runs, topic=topic, model=model, benign_steps=benign_steps, run=run, load=load.loader(), ctx=ctx
            )
    if len(runs) > 1:
        show_result(result, form, topic, model)
        return
    from conviction.core.run import Run
    from conviction.forecasting.records import Forecast
    from conviction.reporting.next_steps import Names
    from conviction.views.forecast import show_score

    show_score(Run(runs[0]).load_forecast(Forecast), score, form)
    show_next_steps(score, Names(run=str(runs[0])), form)
    log(f"written to {runs[0]}/comparison.json")
    write_page(runs[0])
