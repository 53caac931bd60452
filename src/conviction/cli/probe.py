"""The command `probe`."""

from __future__ import annotations

from typing import Annotated

import typer

from conviction.cli.options import (
    BackendOption,
    DeviceOption,
    DtypeOption,
    FormatOption,
    ModelOption,
    RunOption,
    TrustOption,
    load_named,
)
from conviction.views.scorecard import show_scorecard
from conviction.views.text import log, progress_bars

__all__ = ["probe"]


def probe(
    topic: Annotated[str, typer.Argument(help="A built-in topic, or the folder of one.")],
    model: ModelOption = "smollm2-135m",
    quick: Annotated[bool, typer.Option("--quick", help="Only the questions tagged 'quick'.")] = False,
    templates: Annotated[bool, typer.Option("--templates", help="Also ask under neutral prompt templates.")] = False,
    health: Annotated[bool, typer.Option("--health", help="Also write greedy answers and read neutral text.")] = False,
    backend: BackendOption = "transformers",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    trust_remote_code: TrustOption = False,
    form: FormatOption = "text",
    run: RunOption = None,
) -> None:
    """Which side does the model prefer, by how much, and how sure can one be?"""
    from conviction.core.context import Callbacks, RunContext
    from conviction.core.run import Run
    from conviction.data.topic import load_topic
    from conviction.probing.records import Scorecard
    from conviction.probing.scorecard import probe as measure

    kit = load_topic(topic)
    with Run.start(run, topic=kit.name, verb="probe") as opened, progress_bars() as bars:
        if opened.finished:
            card = opened.load("before", Scorecard)
        else:
            loaded = load_named(model, backend, device, dtype, trust_remote_code)
            ctx = RunContext(callbacks=Callbacks(log=log, progress=bars))
            if opened.resumed:
                log(f"resuming the unfinished run in {opened.folder}")
            card = opened.cached(
                "before", Scorecard, measure, loaded, kit, quick=quick, templates=templates, health=health, ctx=ctx
            )
    show_scorecard(card, form)
    log(f"evidence for every number: {opened.folder}/samples.jsonl")
