"""The command `localize`."""

from __future__ import annotations

from typing import Annotated

import typer

from conviction.cli.options import (
    BackendOption,
    DataOption,
    DeviceOption,
    DtypeOption,
    FormatOption,
    ModelOption,
    RunOption,
    TopicArgument,
    TrustOption,
    load_named,
)
from conviction.views.text import log, progress_bars

__all__ = ["localize"]


def localize(
    topic: TopicArgument = None,
    data: DataOption = None,
    model: ModelOption = "smollm2-135m",
    limit: Annotated[int, typer.Option(min=1, help="Statements that are traced.")] = 10,
    kinds: Annotated[str, typer.Option(help="Sites, with commas: block, mlp, attention.")] = "block,mlp,attention",
    samples: Annotated[int, typer.Option(min=1, help="Draws of noise for a trace.")] = 4,
    own_answer: Annotated[
        bool, typer.Option("--own-answer", help="Trace what the model says, right or wrong.")
    ] = False,
    backend: BackendOption = "transformers",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    trust_remote_code: TrustOption = False,
    form: FormatOption = "text",
    run: RunOption = None,
) -> None:
    """Where does an answer sit? Causal tracing, knowledge neurons, truth directions; each beside a control."""
    from conviction.core.context import Callbacks, RunContext
    from conviction.core.run import Run
    from conviction.localization.heatmaps import draw_all
    from conviction.localization.statements import gather
    from conviction.views.localization import show_localization

    asked = gather(topic, data, kinds, own_answer=own_answer)
    loaded = load_named(model, backend, device, dtype, trust_remote_code)
    with Run.start(run, topic=asked.label, verb="localize") as opened, progress_bars() as bars:
        found = asked.run(
            loaded, limit=limit, samples=samples, ctx=RunContext(callbacks=Callbacks(log=log, progress=bars))
        )
        opened.save("localization", found)
        draw_all(found, opened.folder / "maps")
    show_localization(found, form)
    log(f"every number: {opened.folder}/localization.json; heat maps: {opened.folder}/maps")
