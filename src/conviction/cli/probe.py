"""The command `probe`."""

from __future__ import annotations

from typing import Annotated

import typer

from conviction.cli.options import USUAL, FormatOption, LoadOptions, ModelOption, RunOption
from conviction.cli.page import write_page
from conviction.views.live import watched
from conviction.views.next_steps import show_next_steps
from conviction.views.scorecard import show_scorecard
from conviction.views.text import log

__all__ = ["probe"]


def probe(
    topic: Annotated[str, typer.Argument(help="A built-in topic, or the folder of one.")],
    *,
    model: ModelOption = USUAL,
    quick: Annotated[bool, typer.Option("--quick", help="Only the questions tagged 'quick'.")] = False,
    templates: Annotated[bool, typer.Option("--templates", help="Also ask under neutral prompt templates.")] = False,
    health: Annotated[bool, typer.Option("--health", help="Also write greedy answers and read neutral text.")] = False,
    forced_choice: Annotated[
        bool, typer.Option("--forced-choice", help="Also ask for the letter of the better answer, A or B.")
    ] = False,
    load: LoadOptions,
    form: FormatOption = "text",
    run: RunOption = None,
) -> None:
    """Which side does the model prefer, by how much, and how sure can one be?"""
    from conviction.core.run_head import new_folder
    from conviction.data.topic import load_topic
    from conviction.reporting.next_steps import Names
    from conviction.verbs import measuring

    kit = load_topic(topic)
    folder = run or new_folder(kit.name, "probe")
    with watched() as ctx:
        card = measuring.probe(
            model,
            kit,
            quick=quick,
            templates=templates,
            health=health,
            forced_choice=forced_choice,
            run=folder,
            load=load.loader(model),
            ctx=ctx,
        )
    show_scorecard(card, form)
    show_next_steps(card, Names(run=str(folder), topic=topic, model=model if model != USUAL else None), form)
    log(f"evidence for every number: {folder}/samples.jsonl")
    write_page(folder)
