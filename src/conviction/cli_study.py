"""The commands `study`, `compare` and `report`."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from conviction.cli_options import (
    EXIT_FOUND,
    BaseOption,
    DeviceOption,
    DtypeOption,
    FormatOption,
    GuardOption,
    ModelOption,
    RunOption,
    TrustOption,
    load_named,
)
from conviction.render import Format, out, progress_bars, say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conviction.core.protocols import LanguageModel
    from conviction.core.study import Study

__all__ = ["compare", "report", "study"]

ARMS = "system_prompt,rag,steer,sft,dpo"
WearOption = Annotated[int, typer.Option(min=0, help="Benign training steps before durability is read; 0: none.")]


def study(
    topic: Annotated[str, typer.Argument(help="A built-in topic, or the folder of one.")],
    model: ModelOption = "smollm2-135m",
    interventions: Annotated[
        str, typer.Option(help="Arms, with commas: `conviction interventions` lists them.")
    ] = ARMS,
    option: Annotated[list[str] | None, typer.Option("-o", "--option", help="A field: -o dpo.beta=0.1")] = None,
    budget: Annotated[float | None, typer.Option(min=0, help="Minutes after which no arm is begun.")] = None,
    wear: WearOption = 10,
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
    with (
        _shown(form) as show,
        Run.start(run, topic=kit.name, verb="study") as opened,
        progress_bars() as bars,
    ):
        if opened.resumed:
            say(f"resuming the unfinished study in {opened.folder}")
        load = _loader(opened.folder, device, dtype, trust_remote_code)
        show(study(design, opened, load, Watch(say=say, bars=bars)), opened.folder)


def compare(
    runs: Annotated[list[Path], typer.Argument(help="One run that was made with --forecast, or several of `apply`.")],
    topic: Annotated[
        str | None, typer.Option(help="Of several runs: a built-in topic or a folder, if not the first run's own.")
    ] = None,
    model: BaseOption = None,
    wear: WearOption = 10,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    trust_remote_code: TrustOption = False,
    form: FormatOption = "text",
    run: RunOption = None,
) -> None:
    """One run: hold its frozen forecast to what happened. Several: a study's table of them."""
    if len(runs) > 1:
        _compare_several(runs, topic, model, wear, device, dtype, trust_remote_code, form, run)
        return
    from conviction.compare import compare_run
    from conviction.render_forecast import show_score

    with progress_bars() as bars:
        expected, score = compare_run(
            runs[0], lambda name: load_named(name, device, dtype, trust_remote_code), base=model, progress=bars
        )
    show_score(expected, score, form)
    say(f"written to {runs[0]}/comparison.json")


def _compare_several(
    runs: list[Path],
    topic: str | None,
    model: str | None,
    wear: int,
    device: str,
    dtype: str,
    trust_remote_code: bool,
    form: Format,
    run: Path | None,
) -> None:
    from conviction.core.run import Run
    from conviction.core.topic import load_topic
    from conviction.study import Design, compare, read_made
    from conviction.train.loop import Watch

    made = read_made(runs)
    kit = load_topic(topic or made[0].topic)
    with (
        _shown(form) as show,
        Run.start(run, topic=kit.name, verb="compare") as opened,
        progress_bars() as bars,
    ):
        load = _loader(opened.folder, device, dtype, trust_remote_code)
        design = Design(topic=kit, model=model or made[0].model, wear_steps=wear, placebo=False)
        show(compare(made, design, opened, load, Watch(say=say, bars=bars)), opened.folder)


@contextmanager
def _shown(form: Format) -> Iterator[Callable[[Study, Path], None]]:
    """Gives what takes a study's result, which is shown, with its page, once its run folder is closed.

    Where arms are missing the run stays unfinished: the same command tries them again.
    """
    from conviction.render_study import show_study
    from conviction.report import report as build

    taken: list[tuple[Study, Path]] = []

    def take(found: Study, folder: Path) -> None:
        taken.append((found, folder))
        if any(arm.judgement is None for arm in found.arms):
            raise typer.Exit(EXIT_FOUND)

    try:
        yield take
    finally:
        for found, folder in taken:
            show_study(found, form)
            say(f"every number: {folder}/study.json, and one folder an arm in {folder}/arms")
            say(f"page: {build(folder)}")
            if missing := [arm.name for arm in found.arms if arm.judgement is None]:
                say(f"not judged: {', '.join(missing)}; to try again: the same command with --run {folder}")


def _loader(folder: Path, device: str, dtype: str, trust_remote_code: bool) -> Callable[[str], LanguageModel]:
    """Loads in one dtype, chosen once: an arm in another than the untouched model would differ by rounding."""
    known = _known_dtype(folder) if dtype == "auto" else dtype

    def load(name: str) -> LanguageModel:
        nonlocal known
        loaded = load_named(name, device, known or "auto", trust_remote_code)
        known = known or _askable(loaded.describe().get("dtype"))
        return loaded

    return load


def _known_dtype(folder: Path) -> str | None:
    """In which dtype a study that is taken up again was begun."""
    try:
        return _askable(json.loads((folder / "design.json").read_text(encoding="utf-8"))["model"]["dtype"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _askable(dtype: Any) -> str | None:
    """The dtype, if --dtype knows it: quantised weights have others."""
    from conviction.models.devices import KNOWN

    return dtype if dtype in KNOWN else None


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
