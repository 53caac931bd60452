"""The command `localize`."""

from __future__ import annotations

from typing import Annotated

import typer

from conviction.cli.options import (
    USUAL,
    ColumnsOption,
    DataOption,
    FormatOption,
    LoadOptions,
    ModelOption,
    RunOption,
    TopicArgument,
)
from conviction.views.live import watched
from conviction.views.next_steps import show_next_steps
from conviction.views.text import log

__all__ = ["localize"]


def localize(
    topic: TopicArgument = None,
    *,
    data: DataOption = None,
    columns: ColumnsOption = None,
    model: ModelOption = USUAL,
    limit: Annotated[int, typer.Option(help="Statements that are traced.")] = 10,
    kinds: Annotated[str, typer.Option(help="Sites, with commas: block, mlp, attention.")] = "block,mlp,attention",
    samples: Annotated[int, typer.Option(help="Draws of noise for a trace.")] = 4,
    own_answer: Annotated[
        bool, typer.Option("--own-answer", help="Trace what the model says, right or wrong.")
    ] = False,
    load: LoadOptions,
    form: FormatOption = "text",
    run: RunOption = None,
) -> None:
    """Where does an answer sit? Causal tracing, knowledge neurons, truth directions; each beside a control."""
    from conviction.core.run_head import new_folder
    from conviction.data.columns import parse_columns
    from conviction.data.reading import read_source
    from conviction.reporting.next_steps import Names
    from conviction.verbs import measuring
    from conviction.verbs.inputs import as_source
    from conviction.views.localization import show_localization

    source = as_source(read_source(topic, data, parse_columns(columns)))
    folder = run or new_folder(source.label, "localize")
    with watched() as ctx:
        result = measuring.localize(
            source.topic or source.data, model, kinds=kinds, own_answer=own_answer, samples=samples, limit=limit,
            run=folder, load=load.loader(model), ctx=ctx,
        )  # fmt: skip
    show_localization(result, form)
    show_next_steps(
        result, Names(run=str(folder), topic=topic, data=data, model=model if model != USUAL else None), form
    )
    log(f"every number: {folder}/localization.json; heat maps: {folder}/maps")
