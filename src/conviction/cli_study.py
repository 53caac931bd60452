"""The commands `study` and `report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from conviction.cli_options import (
    EXIT_FOUND,
    DeviceOption,
    DtypeOption,
    FormatOption,
    GuardOption,
    ModelOption,
    RunOption,
    TrustOption,
    load_named,
)
from conviction.render import out, progress_bars, say

if TYPE_CHECKING:
    from conviction.core.protocols import LanguageModel

__all__ = ["report", "study"]

DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
ARMS = "system_prompt,rag,steer,sft,dpo"


def study(
    topic: Annotated[str, typer.Argument(help="A built-in topic, or the folder of one.")],
    model: ModelOption = "smollm2-135m",
    interventions: Annotated[
        str, typer.Option(help="Arms, with commas: `conviction interventions` lists them.")
    ] = ARMS,
    option: Annotated[list[str] | None, typer.Option("-o", "--option", help="A field: -o dpo.beta=0.1")] = None,
    budget: Annotated[float | None, typer.Option(min=0, help="Minutes after which no arm is begun.")] = None,
    wear: Annotated[int, typer.Option(min=0, help="Benign training steps before durability is read; 0: none.")] = 20,
    placebo: Annotated[bool, typer.Option(help="Train each trained arm on another subject, too.")] = True,
    guard: GuardOption = "default",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    trust_remote_code: TrustOption = False,
    form: FormatOption = "text",
    run: RunOption = None,
) -> None:
    """What works on this model, how deep does it go, and what does it break? Exit code 1: arms are missing."""
    from conviction.core.run import Run
    from conviction.core.topic import load_topic
    from conviction.render_study import show_study
    from conviction.study import Design, plan_arms, study
    from conviction.train.loop import Watch

    kit = load_topic(topic)
    names = [name.strip() for name in interventions.split(",") if name.strip()]
    design = Design(
        topic=kit,
        model=model,
        plans=plan_arms(names, topic, model, option or [], guard),
        budget_s=None if budget is None else 60 * budget,
        wear_steps=wear,
        placebo=placebo,
    )
    with Run.start(run, topic=kit.name, verb="study") as opened, progress_bars() as bars:
        if opened.resumed:
            say(f"resuming the unfinished study in {opened.folder}")
        known = _known_dtype(opened.folder) if dtype == "auto" else dtype

        def load(name: str) -> LanguageModel:
            nonlocal known
            loaded = load_named(name, device, known or "auto", trust_remote_code)
            # Chosen once: an arm in another dtype than the untouched model would differ by rounding.
            known = known or DTYPES.get(str(loaded.describe().get("dtype")))
            return loaded

        found = study(design, opened, load, Watch(say=say, bars=bars))
        if unfinished := [arm.name for arm in found.arms if arm.judgement is None]:
            # The run stays open: with the same command, these arms are tried again.
            show_study(found, form)
            say(f"not judged: {', '.join(unfinished)}; to try again: the same command with --run {opened.folder}")
            raise typer.Exit(EXIT_FOUND)
    show_study(found, form)
    say(f"every number: {opened.folder}/study.json, and one folder an arm in {opened.folder}/arms")


def _known_dtype(folder: Path) -> str | None:
    """In which dtype a study that is taken up again was begun."""
    try:
        provenance = json.loads((folder / "depth.json").read_text(encoding="utf-8"))["provenance"]
        return DTYPES.get(provenance["model"]["dtype"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def report(
    run: Annotated[Path, typer.Argument(help="A run folder: of a study, an intervention or a probe.")],
    form: Annotated[Literal["html", "md"], typer.Option("--format", help="A page, or a text for an issue.")] = "html",
    png: Annotated[bool, typer.Option("--png", help="Also every picture as a file, in RUN/pictures.")] = False,
) -> None:
    """One page out of a run folder, that works offline."""
    from conviction.report import report as build
    from conviction.report import report_markdown

    if form == "md":
        out.file.write(report_markdown(run))
        return
    say(f"page: {build(run, pictures=png)}")
