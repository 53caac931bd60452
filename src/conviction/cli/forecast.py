"""The command `forecast`."""

from __future__ import annotations

from typing import Annotated

import typer

from conviction.cli.options import (
    EXIT_FINDINGS,
    BackendOption,
    BaseOption,
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
    load_named,
)
from conviction.views.text import log, progress_bars

__all__ = ["forecast"]


def forecast(
    name: NameArgument,
    topic: TopicArgument = None,
    data: DataOption = None,
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
    from conviction.core.context import Callbacks, RunContext
    from conviction.core.run import Run
    from conviction.forecasting.pipeline import forecast as make_forecast
    from conviction.forecasting.records import Forecast
    from conviction.forecasting.sweep import parse_sweep
    from conviction.views.forecast import show_forecast

    plan = assemble(
        name, topic=topic, data=data, model=model, options=option or [], config=config, preset=preset, guard=guard
    )
    for note in plan.notes:
        log(f"note: {note}")
    grid = parse_sweep(plan.intervention, sweep) if sweep else None
    training_data, held_out = plan.training_data(), plan.held_out(test)
    label = training_data.name.replace("/", "-")
    with Run.start(run, topic=label, verb=f"forecast-{name}") as opened, progress_bars() as bars:
        if opened.finished:
            result = opened.load_forecast(Forecast)
        else:
            loaded = load_named(plan.model, backend, device, dtype, trust_remote_code)
            ctx = RunContext(guard=plan.guard, callbacks=Callbacks(log=log, progress=bars))
            result = make_forecast(
                loaded, training_data, plan.intervention, held_out=held_out, sweep=grid,
                pilot_steps=pilot, examples=examples, ctx=ctx,
            )  # fmt: skip
            opened.save_forecast(result)
    show_forecast(result, form)
    log(f"every pair: {opened.folder}/forecast.json; to freeze one with a run: conviction apply {name} … --forecast")
    if result.verdict.kind not in {"trainable", "none"}:
        raise typer.Exit(EXIT_FINDINGS)
