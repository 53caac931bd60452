"""The command `apply`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
from conviction.errors import InputError
from conviction.views.text import log, progress_bars

if TYPE_CHECKING:
    from conviction.config.plan import Plan
    from conviction.core.context import RunContext
    from conviction.core.protocols import LanguageModel
    from conviction.core.run import Run
    from conviction.data.training_data import TrainingData

__all__ = ["apply"]


def apply(
    name: NameArgument,
    topic: TopicArgument = None,
    data: DataOption = None,
    model: BaseOption = None,
    option: SetOption = None,
    config: ConfigOption = None,
    preset: PresetOption = None,
    guard: GuardOption = "default",
    forecast_first: Annotated[
        bool, typer.Option("--forecast", help="Write a forecast into the run folder first.")
    ] = False,
    test: TestOption = None,
    track: Annotated[str | None, typer.Option(help="tensorboard, wandb, mlflow or trackio.")] = None,
    backend: BackendOption = "transformers",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    trust_remote_code: TrustOption = False,
    form: FormatOption = "text",
    run: RunOption = None,
) -> None:
    """Change a model, under a guard that stops before it breaks. Exit code 1: it was stopped."""
    from conviction.config.plan import assemble
    from conviction.core.context import Callbacks, RunContext
    from conviction.interventions.application import carry_out
    from conviction.interventions.records import Outcome
    from conviction.views.live import live_steps
    from conviction.views.outcome import show_outcome

    plan = assemble(
        name, topic=topic, data=data, model=model, options=option or [], config=config, preset=preset, guard=guard
    )
    for note in plan.notes:
        log(f"note: {note}")
    if track is not None:
        from conviction.training.tracking import check_tracker

        check_tracker(track)
    training_data = plan.training_data()
    with (
        _run_folder(run, training_data.name.replace("/", "-"), name) as opened,
        progress_bars() as bars,
        live_steps() as step,
    ):
        if opened.finished:
            outcome = opened.load("outcome", Outcome)
        else:
            callbacks = Callbacks(log=log, progress=bars, on_step=step)
            ctx = RunContext(guard=plan.guard, callbacks=callbacks, run=opened, tracker=track)
            loaded = load_named(plan.model, backend, device, dtype, trust_remote_code)
            if forecast_first:
                _forecast(opened, plan, loaded, training_data, test, ctx)
            outcome = carry_out(plan.intervention, loaded, training_data, ctx)
            if _is_main():
                opened.save("outcome", outcome)
    folder = opened.folder
    again = (
        f"conviction compare {folder}"
        if opened.has("forecast")
        else f"conviction probe {topic or 'TOPIC'} --model {folder}/model"
    )
    if _is_main():
        show_outcome(outcome, str(folder), form)
        every = f"every step: {folder}/steps.jsonl" if outcome.training else f"every number: {folder}/outcome.json"
        log(f"{every}; look again: {again}")
    if outcome.guard_stop:
        raise typer.Exit(EXIT_FINDINGS)


def _forecast(
    run: Run, plan: Plan, model: LanguageModel, data: TrainingData, test: str | None, ctx: RunContext
) -> None:
    """Write the forecast of a run before its first step; of one that is continued it is there already."""
    from conviction.forecasting.pipeline import forecast

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            "a forecast is made by one process", hint="leave --forecast out, or leave accelerate launch out"
        )
    if not run.has("forecast"):
        expected = run.save_forecast(forecast(model, data, plan.intervention, held_out=plan.held_out(test), ctx=ctx))
        log(f"forecast: {expected.verdict.kind} ({run.folder}/forecast.json)")


def _is_main() -> bool:
    """Whether this is the only process, or the first under ``accelerate launch``."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def _run_folder(folder: Path | None, topic: str, verb: str) -> Iterator[Run]:
    """The run; under ``accelerate launch`` only the first process keeps its head."""
    from conviction.core.run import Run

    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and folder is None:
        raise InputError("several processes need one run folder", hint="give --run a folder")
    if folder is not None and not _is_main():
        yield Run(folder, resumed=True)
        return
    with Run.start(folder, topic=topic, verb=f"apply-{verb}") as opened:
        if opened.resumed and not opened.finished:
            log(f"resuming the unfinished run in {opened.folder}")
        yield opened
