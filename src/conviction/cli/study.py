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
        str, typer.Option(help="Arms, with commas: `conviction interventions` lists them.")
    ] = ARMS,
    option: Annotated[list[str] | None, typer.Option("-o", "--option", help="A field: -o dpo.beta=0.1")] = None,
    budget: Annotated[
        float | None, typer.Option(help="Minutes after which no arm and no training step is begun.")
    ] = None,
    benign_steps: BenignOption = 10,
    placebo: Annotated[bool, typer.Option(help="Train each trained arm on another subject, too.")] = True,
    tune: TuneOption = "auto",
    guard: GuardOption = "default",
    load: LoadOptions,
    form: FormatOption = "text",
    run: RunOption = None,
) -> None:
    """What works on this model, how deep does it go, and what does it break? Exit code 1: arms are missing."""
    from conviction.config.plan import parse_arm_options
    from conviction.verbs import comparing

    arms = list(dict.fromkeys(name.strip() for name in interventions.split(",") if name.strip()))
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


def show_result(result: Study, form: Format) -> None:
    """Its table and its page. Exits with 1 where arms are missing."""
    from conviction.reporting.page import report
    from conviction.views.study import show_study

    folder = str(result.folder)
    show_study(result, form)
    log(f"every number: {folder}/study.json, and one folder an arm in {folder}/arms")
    log(f"page: {report(folder)}")
    if result.missing:
        log(f"not judged: {', '.join(result.missing)}; to try again: the same command with --run {folder}")
        raise typer.Exit(EXIT_FINDINGS)
