"""The command `compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from conviction.cli.options import (
    BackendOption,
    BaseOption,
    BenignOption,
    DeviceOption,
    DtypeOption,
    FormatOption,
    RunOption,
    TrustOption,
    load_named,
)
from conviction.cli.study_run import loader, shown
from conviction.views.text import Format, log, progress_bars

__all__ = ["compare"]


def compare(
    runs: Annotated[list[Path], typer.Argument(help="One run that was made with --forecast, or several of `apply`.")],
    topic: Annotated[
        str | None, typer.Option(help="Of several runs: a built-in topic or a folder, if not the first run's own.")
    ] = None,
    model: BaseOption = None,
    benign_steps: BenignOption = 10,
    backend: BackendOption = "transformers",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    trust_remote_code: TrustOption = False,
    form: FormatOption = "text",
    run: RunOption = None,
) -> None:
    """One run: hold its frozen forecast to what happened. Several: a study's table of them."""
    if len(runs) > 1:
        _compare_several(runs, topic, model, benign_steps, backend, device, dtype, trust_remote_code, form, run)
        return
    from conviction.core.context import Callbacks, RunContext
    from conviction.core.run import Run
    from conviction.forecasting.records import Forecast
    from conviction.studies.forecast_comparison import compare_with_forecast
    from conviction.views.forecast import show_score

    opened = Run(runs[0], resumed=True)
    expected = opened.load_forecast(Forecast)
    with progress_bars() as bars:
        score = compare_with_forecast(
            opened,
            lambda name: load_named(name, backend, device, dtype, trust_remote_code),
            base=model,
            ctx=RunContext(callbacks=Callbacks(log=log, progress=bars)),
        )
    opened.save("comparison", score)
    show_score(expected, score, form)
    log(f"written to {runs[0]}/comparison.json")


def _compare_several(
    runs: list[Path],
    topic: str | None,
    model: str | None,
    benign_steps: int,
    backend: str,
    device: str,
    dtype: str,
    trust_remote_code: bool,
    form: Format,
    run: Path | None,
) -> None:
    from conviction.core.context import Callbacks, RunContext
    from conviction.core.run import Run
    from conviction.data.topic import load_topic
    from conviction.studies.applied_runs import load_applied_runs
    from conviction.studies.comparison import compare_runs
    from conviction.studies.context import StudyDesign
    from conviction.studies.records import Study

    applied = load_applied_runs(runs)
    kit = load_topic(topic or applied[0].outcome.data.name)
    with shown(form) as show, Run.start(run, topic=kit.name, verb="compare") as opened, progress_bars() as bars:
        if opened.finished:
            show(opened.load("study", Study), opened.folder)
            return
        load = loader(opened, backend, device, dtype, trust_remote_code)
        ctx = RunContext(callbacks=Callbacks(log=log, progress=bars), run=opened)
        design = StudyDesign(load=load, benign_steps=benign_steps, placebo=False)
        base = load(model or str(applied[0].outcome.base["id"]))
        show(compare_runs(applied, kit, base, opened, ctx, design), opened.folder)
