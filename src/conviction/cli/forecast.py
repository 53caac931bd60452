"""The command `forecast`."""

from __future__ import annotations

from typing import Annotated

import typer

from conviction.cli.options import (
    EXIT_FINDINGS,
    BackendOption,
    BaseOption,
    ColumnsOption,
    ConfigOption,
    DataOption,
    DeviceOption,
    DtypeOption,
    FormatOption,
    GuardOption,
    NameArgument,
    PresetOption,
    RunOption,
    SetOption,
    TestOption,
    TopicArgument,
    TrustOption,
    loader,
)
from conviction.views.live import watched
from conviction.views.text import log

__all__ = ["forecast"]


def forecast(
    name: NameArgument,
    topic: TopicArgument = None,
    data: DataOption = None,
    columns: ColumnsOption = None,
    test: TestOption = None,
    model: BaseOption = None,
    option: SetOption = None,
    sweep: Annotated[list[str] | None, typer.Option(help="learning_rate=1e-6..1e-3, beta=0.01,0.1: a map.")] = None,
    config: ConfigOption = None,
    preset: PresetOption = None,
    guard: GuardOption = "default",
    examples: Annotated[int, typer.Option(min=1, help="Trained examples that get gradients of their own.")] = 96,
    pilot: Annotated[int, typer.Option(min=1, help="Real steps before the forecast, thrown away.")] = 10,
    backend: BackendOption = "transformers",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    trust_remote_code: TrustOption = False,
    form: FormatOption = "text",
    run: RunOption = None,
) -> None:
    """Know before training: will it flip, at which settings, and will it break? Exit code 1: not as planned."""
    from conviction.config.plan import assemble
    from conviction.core.run_head import new_folder
    from conviction.data.columns import parse_columns
    from conviction.verbs import changing
    from conviction.verbs.inputs import as_source
    from conviction.views.forecast import show_forecast

    job = assemble(
        name,
        topic=topic,
        data=data,
        model=model,
        options=option or [],
        config=config,
        preset=preset,
        guard=guard,
        columns=parse_columns(columns),
    )
    for note in job.notes:
        log(f"note: {note}")
    source = as_source(job.source())
    folder = run or new_folder(source.label, f"forecast-{name}")
    with watched() as ctx:
        result = changing.forecast(
            job.plan.intervention, job.model, source.topic or source.data, test=test, sweep=sweep, examples=examples,
            pilot_steps=pilot, guard=job.plan.guard, run=folder,
            load=loader(backend, device, dtype, trust_remote_code), ctx=ctx,
        )  # fmt: skip
    show_forecast(result, form)
    log(f"every pair: {folder}/forecast.json; to freeze one with a run: conviction apply {name} … --forecast")
    if result.verdict.kind not in {"trainable", "none"}:
        raise typer.Exit(EXIT_FINDINGS)
