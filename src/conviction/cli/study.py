"""The command `study`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from conviction.cli.options import (
    EXIT_FINDINGS,
    USUAL,
    BenignOption,
    FormatOption,
    GuardOption,
    LoadOptions,
    ModelOption,
    RunOption,
    TuneOption,
    minutes_of,
)
from conviction.cli.page import write_page
from conviction.errors import MissingExtraError
from conviction.views.live import watched
from conviction.views.next_steps import show_next_steps
from conviction.views.text import Format, log

if TYPE_CHECKING:
    from conviction.studies.records import Study

__all__ = ["show_result", "study"]

ARMS = "system_prompt,rag,steer,sft,dpo"


def study(
    topic: Annotated[str, typer.Argument(help="A built-in topic, or the folder of one.")],
    *,
    model: ModelOption = USUAL,
    interventions: Annotated[
        str | None,
        typer.Option(help="Arms, with commas: `conviction interventions` lists them.", show_default=ARMS),
    ] = None,
    option: Annotated[list[str] | None, typer.Option("-o", "--option", help="A field: -o dpo.beta=0.1")] = None,
    budget: Annotated[
        float | None, typer.Option(help="Minutes after which no arm and no training step is begun.")
    ] = None,
    benign_steps: BenignOption = None,
    placebo: Annotated[bool, typer.Option(help="Train each trained arm on another subject, too.")] = True,
    tune: TuneOption = "auto",
    seeds: Annotated[
        int | None,
        typer.Option(help="Seeds that each trained arm is trained with; else 3 as far as --budget holds, 1 without."),
    ] = None,
    guard: GuardOption = "default",
    load: LoadOptions,
    form: FormatOption = "text",
    run: RunOption = None,
) -> None:
    """What works on this model, how deep does it go, and what does it break? Exit code 1: arms are missing."""
    from conviction.config.plan import parse_arm_options
    from conviction.verbs import comparing

    named = ARMS if interventions is None else interventions
    arms = list(dict.fromkeys(name.strip() for name in named.split(",") if name.strip()))
    if interventions is None:
        arms = [name for name in arms if _is_installed(name)]
    pages = Pages()
    with watched() as shown:
        ctx = replace(shown, callbacks=replace(shown.callbacks, on_study=pages.write))
        result = comparing.study(
            topic,
            model,
            arms,
            options=parse_arm_options(arms, option or []),
            guard=guard,
            budget_minutes=budget,
            benign_steps=benign_steps,
            placebo=placebo,
            tune_minutes=minutes_of(tune),
            seeds=seeds,
            run=run,
            load=load.loader(model),
            ctx=ctx,
        )
    show_result(result, form, topic, model if model != USUAL else None)


@dataclass
class Pages:
    """Writes a study's page whenever it has come further: it can be read from the first minutes on."""

    folder: Path | None = None

    def write(self, study: Study) -> None:
        """The page as far as the study has come; where it lies, or why there is none, is said once."""
        write_page(study.folder or Path(), "page, written again after each arm", quiet=self.folder == study.folder)
        self.folder = study.folder


def _is_installed(name: str) -> bool:
    """Whether a default arm can run here. Nobody asked for it by its name: one that cannot is left out, with a note."""
    from conviction.interventions import check_installed, find_intervention

    try:
        check_installed(find_intervention(name))
    except MissingExtraError as error:
        log(f"note: {name} is left out of the default arms: {error.message} ({error.hint})")
        return False
    return True


def show_result(result: Study, form: Format, topic: str | None, model: str | None) -> None:
    """Its table, what to do next, and its page. Exits with 1 where arms are missing.

    topic, model  as the user named them
    """
    from conviction.reporting.next_steps import Names
    from conviction.views.study import show_study

    folder = result.folder or Path()
    show_study(result, form)
    show_next_steps(result, Names(run=str(folder), topic=topic or result.topic, model=model), form)
    log(f"every number: {folder}/study.json, and one folder an arm in {folder}/arms")
    write_page(folder)
    if result.unfinished:
        log(f"not judged: {', '.join(result.unfinished)}")
        raise typer.Exit(EXIT_FINDINGS)
