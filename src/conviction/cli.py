"""The command line: parse, call one library function, render. Heavy imports come after parsing."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from conviction.cli_lists import interventions, models, topics_app
from conviction.cli_localize import localize
from conviction.cli_options import (
    EXIT_FOUND,
    BaseOption,
    ConfigOption,
    DataOption,
    DeviceOption,
    DtypeOption,
    FormatOption,
    GuardOption,
    ModelOption,
    NameArgument,
    PresetOption,
    RunOption,
    SetOption,
    TestOption,
    TopicArgument,
    TrustOption,
    load_named,
)
from conviction.cli_study import compare, report, study
from conviction.errors import ConvictionError, InputError
from conviction.render import progress_bars, say, show_error, show_scorecard
from conviction.render_findings import AuditFormat, change_lines, show_audit, show_page, show_rules

if TYPE_CHECKING:
    from conviction.core.material import Material
    from conviction.core.protocols import LanguageModel
    from conviction.forecast.rows import Asked
    from conviction.intervene.assemble import Plan
    from conviction.train.loop import Watch

__all__ = ["app", "main"]

EXIT_ERROR = 2
TYPER_INTERRUPTED = 130  # what typer makes of Ctrl-C

app = typer.Typer(
    help="Measure what a language model is convinced of, and change it without breaking it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(topics_app, name="topics")
app.command()(models)
app.command()(interventions)
app.command()(localize)
app.command()(compare)
app.command()(study)
app.command()(report)


def main() -> None:
    """Entry point. Every known error becomes an ``error:`` and a ``help:`` line and exit code 2."""
    try:
        code = app(standalone_mode=False) or 0  # typer returns the code of a typer.Exit
        if code == TYPER_INTERRUPTED:
            show_error(
                InputError(
                    "interrupted",
                    hint="what was finished is kept: the same command, with its --run FOLDER, goes on from there",
                )
            )
            code = EXIT_ERROR
    except ConvictionError as error:
        show_error(error)
        code = EXIT_ERROR
    except Exception as error:
        if hasattr(error, "format_message"):  # click's usage errors have one
            hint = "`conviction --help` and `conviction VERB --help` show usage"
            show_error(InputError(error.format_message(), hint=hint))
        else:  # a bug: Python's own exit code would be 1, which means findings
            traceback.print_exc()
        code = EXIT_ERROR
    sys.exit(code)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"conviction {version('conviction')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def probe(
    topic: Annotated[str, typer.Argument(help="A built-in topic, or the folder of one.")],
    model: ModelOption = "smollm2-135m",
    seed_only: Annotated[bool, typer.Option("--seed-only", help="Only the questions tagged 'seed'.")] = False,
    templates: Annotated[bool, typer.Option("--templates", help="Also ask under neutral prompt templates.")] = False,
    health: Annotated[bool, typer.Option("--health", help="Also write greedy answers and read neutral text.")] = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    trust_remote_code: TrustOption = False,
    form: FormatOption = "text",
    run: RunOption = None,
) -> None:
    """Which side does the model lean to, by how much, and how sure can one be?"""
    from conviction.core.run import Run
    from conviction.core.topic import load_topic
    from conviction.probe import probe as measure

    kit = load_topic(topic)
    loaded = load_named(model, device, dtype, trust_remote_code)
    with Run.start(run, topic=kit.name, verb="probe") as opened:
        if opened.resumed:
            say(f"resuming the unfinished run in {opened.folder}")
        with progress_bars() as bars:
            card = measure(loaded, kit, seed_only=seed_only, templates=templates, health=health, progress=bars)
        opened.save("before", card)
    show_scorecard(card, form)
    say(f"evidence for every number: {opened.folder}/samples.jsonl")


@app.command()
def apply(
    name: NameArgument,
    topic: TopicArgument = None,
    data: DataOption = None,
    model: BaseOption = None,
    option: SetOption = None,
    config: ConfigOption = None,
    preset: PresetOption = None,
    guard: GuardOption = "default",
    foresee: Annotated[bool, typer.Option("--forecast", help="Write a forecast into the run folder first.")] = False,
    test: TestOption = None,
    track: Annotated[str | None, typer.Option(help="tensorboard, wandb, mlflow or trackio.")] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    trust_remote_code: TrustOption = False,
    form: FormatOption = "text",
    run: RunOption = None,
) -> None:
    """Change a model, under a guard that stops before it breaks. Exit code 1: it was stopped."""
    from conviction.core.applied import Applied
    from conviction.intervene.assemble import assemble
    from conviction.live import live_steps, show_applied, show_outcome

    plan = assemble(
        name, topic=topic, data=data, model=model, options=option or [], config=config, preset=preset, guard=guard
    )
    for note in plan.notes:
        say(f"note: {note}")
    if track is not None:
        from conviction.train.tracking import check_tracker

        check_tracker(track)
    material = plan.material()
    asked = plan.asked(test) if foresee else []
    loaded = load_named(plan.model, device, dtype, trust_remote_code)
    with (
        _run_folder(run, material.name.replace("/", "-"), name) as folder,
        progress_bars() as bars,
        live_steps() as step,
    ):
        from conviction.train.loop import Watch

        watch = Watch(say=say, bars=bars, step=step)
        if foresee:
            _freeze(folder, plan, loaded, material, asked, watch)
        moved = plan.intervention.apply(loaded, material, guard=plan.guard, folder=folder, track=track, watch=watch)
    again = f"conviction compare {folder}" if foresee else f"conviction probe {topic or 'TOPIC'} --model {folder}/model"
    if isinstance(moved, Applied):
        show_applied(moved, str(folder), form)
        say(f"every number: {folder}/applied.json; look again: {again}")
    elif moved.outcome.main_process:
        show_outcome(moved.outcome, moved.settings, str(folder), form)
        say(f"every step: {folder}/steps.jsonl; look again: {again}")
    if moved.trip:
        raise typer.Exit(EXIT_FOUND)


@app.command()
def forecast(
    name: NameArgument,
    topic: TopicArgument = None,
    data: DataOption = None,
    test: TestOption = None,
    model: BaseOption = None,
    option: SetOption = None,
    sweep: Annotated[list[str] | None, typer.Option(help="learning_rate=1e-6..1e-3, beta=0.01,0.1: a map.")] = None,
    config: ConfigOption = None,
    preset: PresetOption = None,
    guard: GuardOption = "default",
    examples: Annotated[int, typer.Option(min=1, help="Trained examples that get gradients of their own.")] = 96,
    pilot: Annotated[int, typer.Option(min=1, help="Real steps before the forecast, thrown away.")] = 10,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    trust_remote_code: TrustOption = False,
    form: FormatOption = "text",
    run: RunOption = None,
) -> None:
    """Know before training: will it flip, at which settings, and will it break? Exit code 1: not as planned."""
    from conviction.core.run import Run
    from conviction.forecast import forecast as foresee
    from conviction.forecast.sweep import parse_sweep
    from conviction.intervene.assemble import assemble
    from conviction.render_forecast import show_forecast
    from conviction.train.loop import Watch

    plan = assemble(
        name, topic=topic, data=data, model=model, options=option or [], config=config, preset=preset, guard=guard
    )
    for note in plan.notes:
        say(f"note: {note}")
    grid = parse_sweep(plan.intervention, sweep) if sweep else None
    material, asked = plan.material(), plan.asked(test)
    loaded = load_named(plan.model, device, dtype, trust_remote_code)
    label = material.name.replace("/", "-")
    with Run.start(run, topic=label, verb=f"forecast-{name}") as opened, progress_bars() as bars:
        found = foresee(
            loaded, material, plan.intervention, asked=asked, guard=plan.guard, sweep=grid,
            pilot_steps=pilot, examples=examples, watch=Watch(say=say, bars=bars),
        )  # fmt: skip
        opened.freeze(found)
    show_forecast(found, form)
    say(f"every pair: {opened.folder}/forecast.json; to freeze one with a run: conviction apply {name} … --forecast")
    if found.verdict.kind not in {"trainable", "none"}:
        raise typer.Exit(EXIT_FOUND)


def _freeze(
    folder: Path, plan: Plan, model: LanguageModel, material: Material, asked: Sequence[Asked], watch: Watch
) -> None:
    """Write the forecast of a run before its first step; of one that is taken up again it is there already."""
    from conviction.core.run import Run
    from conviction.forecast import forecast as foresee

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            "a forecast is made by one process", hint="leave --forecast out, or leave accelerate launch out"
        )
    if (folder / "forecast.json").exists():
        return
    found = Run(folder).freeze(foresee(model, material, plan.intervention, asked=asked, guard=plan.guard, watch=watch))
    say(f"forecast: {found.verdict.kind} ({folder}/forecast.json)")


@contextmanager
def _run_folder(folder: Path | None, topic: str, verb: str) -> Iterator[Path]:
    """The folder of a run; under ``accelerate launch`` only the first process keeps its head."""
    from conviction.core.run import Run

    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and folder is None:
        raise InputError("several processes need one run folder", hint="give --run a folder")
    if folder is not None and int(os.environ.get("RANK", "0")) > 0:
        yield folder
        return
    with Run.start(folder, topic=topic, verb=f"apply-{verb}") as opened:
        if opened.resumed:
            say(f"resuming the unfinished run in {opened.folder}")
        yield opened.folder


@app.command()
def audit(
    data: Annotated[str, typer.Argument(help="A file, a folder, a hub name; or a topic, whose own pairs are meant.")],
    model: Annotated[str | None, typer.Option(help="The model to be trained, for what depends on it.")] = None,
    topic: Annotated[str | None, typer.Option(help="What the pairs are to teach, for leaks and poles.")] = None,
    select: Annotated[str | None, typer.Option(help="Only these codes or names, with commas: PD1,length-gap")] = None,
    ignore: Annotated[str | None, typer.Option(help="Not these codes or names.")] = None,
    beta: Annotated[float, typer.Option(help="Of the loss that is planned, for margins.")] = 0.1,
    split: Annotated[str, typer.Option(help="Within a folder or a hub data set.")] = "train",
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 for notes, too.")] = False,
    details: Annotated[bool, typer.Option("--details", help="All evidence, and what every rule measured.")] = False,
    fix: Annotated[bool, typer.Option("--fix", help="Write a cleaned copy, and audit that.")] = False,
    output: Annotated[Path | None, typer.Option(help="Where --fix writes; else NAME.fixed.jsonl.")] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    trust_remote_code: TrustOption = False,
    form: Annotated[AuditFormat, typer.Option("--format", help="How to print the result.")] = "text",
) -> None:
    """A linter for preference data. Exit code 1: something was found."""
    from conviction.audit import audit as look
    from conviction.audit import choose_rules
    from conviction.audit.planning import plan_audit
    from conviction.train.guard import Guard

    chosen, ignored = _names(select), _names(ignore)
    rules = choose_rules(chosen, ignored)
    plan = plan_audit(data, topic=topic, split=split, beta=beta, fix=fix, output=output)
    loaded = load_named(model, device, dtype, trust_remote_code) if model else None
    with progress_bars() as bars:
        changes = plan.write_copy(rules, bars)
        if changes is not None:
            for line in (f"wrote {plan.target}", *change_lines(changes)):
                say(line)
        report = look(
            plan.data,
            topic=plan.topic,
            model=loaded,
            select=chosen,
            ignore=ignored,
            beta=beta,
            margin_cap=Guard().margin_cap,
            split=plan.split,
            progress=bars,
        )
    show_audit(report, form, details=details)
    if report.failed(strict=strict):
        raise typer.Exit(EXIT_FOUND)


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


@app.command()
def rule(
    code: Annotated[str | None, typer.Argument(help="PD301, or length-gap.")] = None,
    form: FormatOption = "text",
) -> None:
    """The page of one of audit's rules; without a code, the list of all."""
    from conviction.audit import RULES, find_rule, rule_page

    if code is None:
        show_rules([find_rule(known) for known in RULES], form)
        return
    show_page(code, rule_page(code), form)
