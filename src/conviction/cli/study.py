"""The command `study`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from conviction.cli.options import (
    EXIT_FINDINGS,
    BenignOption,
    FormatOption,
    GuardOption,
    LoadOptions,
    ModelOption,
    RunOption,
    TuneOption,
    minutes_of,
)
from conviction.errors import MissingExtraError
from conviction.views.live import watched
from conviction.views.text import Format, log

if TYPE_CHECKING:
    from conviction.studies.records import Study

__all__ = ["show_result", "study"]

ARMS = "system_prompt,rag,steer,sft,dpo"


def study(
    topic: Annotated[str, typer.Argument(help="A built-in topic, or the folder of one.")],
    *,
    model: ModelOption = "smollm2-135m",
    interventions: Annotated[
        str | None,
        typer.Option(help="Arms, with commas: `conviction interventions` lists them.", show_default=ARMS),
    ] = None,
    option: Annotated[list[str] | None, typer.Option("-o", "--option", help="A field: -o dpo.beta=0.1")] = None,
    budget: Annotated[
        float | None, typer.Option(help="Minutes after which no arm and no training step is begun.")
    ] = None,
    benign_steps: BenignOption = 10,
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
    show_result(result, form)


@dataclass
class Pages:
    """Writes a study's page whenever it has come further: it can be read from the first minutes on."""

    folder: Path | None = None

    def write(self, study: Study) -> None:
        """The page as far as the study has come; where it lies is said once."""
        from conviction.reporting.page import report

        page = report(str(study.folder))
        if self.folder != study.folder:
            log(f"page, written again after each arm: {page}")
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


def show_result(result: Study, form: Format) -> None:
    """Its table and its page. Exits with 1 where arms are missing."""
    from conviction.reporting.page import report
    from conviction.views.study import show_study

    folder = str(result.folder)
    show_study(result, form)
    log(f"every number: {folder}/study.json, and one folder an arm in {folder}/arms")
    log(f"page: {report(folder)}")
    if result.unfinished:
        log(f"not judged: {', '.join(result.unfinished)}; to try again: the same command with --run {folder}")
        raise typer.Exit(EXIT_FINDINGS)
