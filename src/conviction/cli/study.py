"""The command `study`."""

from __future__ import annotations

from typing import Annotated

import typer

from conviction.cli.options import (
    BackendOption,
    BenignOption,
    DeviceOption,
    DtypeOption,
    FormatOption,
    GuardOption,
    ModelOption,
    RunOption,
    TrustOption,
)
from conviction.cli.study_run import loader, shown
from conviction.views.text import log, progress_bars

__all__ = ["study"]

ARMS = "system_prompt,rag,steer,sft,dpo"


def study(
    topic: Annotated[str, typer.Argument(help="A built-in topic, or the folder of one.")],
    model: ModelOption = "smollm2-135m",
    interventions: Annotated[
        str, typer.Option(help="Arms, with commas: `conviction interventions` lists them.")
    ] = ARMS,
    option: Annotated[list[str] | None, typer.Option("-o", "--option", help="A field: -o dpo.beta=0.1")] = None,
    budget: Annotated[float | None, typer.Option(min=0, help="Minutes after which no arm is begun.")] = None,
    benign_steps: BenignOption = 10,
    placebo: Annotated[bool, typer.Option(help="Train each trained arm on another subject, too.")] = True,
    guard: GuardOption = "default",
    backend: BackendOption = "transformers",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    trust_remote_code: TrustOption = False,
    form: FormatOption = "text",
    run: RunOption = None,
) -> None:
    """What works on this model, how deep does it go, and what does it break? Exit code 1: arms are missing."""
    from conviction.config.plan import plan_arms
    from conviction.core.context import Budget, Callbacks, RunContext
    from conviction.core.run import Run
    from conviction.data.topic import load_topic
    from conviction.studies.context import StudyDesign
    from conviction.studies.records import Study
    from conviction.studies.study import study as run_study

    kit = load_topic(topic)
    names = [name.strip() for name in interventions.split(",") if name.strip()]
    arms = plan_arms(names, topic, model, option or [], guard)
    with shown(form) as show, Run.start(run, topic=kit.name, verb="study") as opened, progress_bars() as bars:
        if opened.finished:
            show(opened.load("study", Study), opened.folder)
            return
        if opened.resumed:
            log(f"resuming the unfinished study in {opened.folder}")
        load = loader(opened, backend, device, dtype, trust_remote_code)
        ctx = RunContext(
            callbacks=Callbacks(log=log, progress=bars),
            run=opened,
            budget=None if budget is None else Budget(60 * budget),
        )
        design = StudyDesign(load=load, benign_steps=benign_steps, placebo=placebo)
        show(run_study(kit, load(model), arms, opened, ctx, design), opened.folder)
