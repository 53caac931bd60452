"""Arguments and options that several commands have: single ones, and groups for ``grouped``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from conviction.errors import InputError
from conviction.views.text import Format, log

if TYPE_CHECKING:
    from conviction.config.plan import Job
    from conviction.core.protocols import LanguageModel
    from conviction.reporting.next_steps import Names
    from conviction.verbs.inputs import Source

__all__ = [
    "EXIT_FINDINGS",
    "USUAL",
    "BaseOption",
    "BenignOption",
    "ColumnsOption",
    "DataOption",
    "FormatOption",
    "GuardOption",
    "JobOptions",
    "LoadOptions",
    "ModelOption",
    "RunOption",
    "TestOption",
    "TopicArgument",
    "TuneOption",
    "minutes_of",
]

USUAL = "smollm2-135m"
"""The model that is asked where none is named."""
EXIT_FINDINGS = 1
"""Exit code of a command that did its work and found something: findings, a stop by the guard, missing arms."""

RunOption = Annotated[Path | None, typer.Option(help="Run folder; an unfinished one is continued.")]
FormatOption = Annotated[Format, typer.Option("--format", help="How to print the result.")]
BenignOption = Annotated[
    int | None,
    typer.Option(help="Benign training steps before durability is read; 0: none; else 10 where a verdict may change."),
]
TopicArgument = Annotated[str | None, typer.Argument(help="A built-in topic, or the folder of one.")]
DataOption = Annotated[str | None, typer.Option(help="A file, a folder or a hub name, instead of a topic.")]
ColumnsOption = Annotated[
    str | None,
    typer.Option(help='Columns of other names: prompt=Question,chosen="Better answer"; input= leaves one out.'),
]
BaseOption = Annotated[str | None, typer.Option(help="An embedded model, a local folder or a hub id.")]
ModelOption = Annotated[str, typer.Option(help="An embedded model, a local folder, a .gguf file or a hub id.")]
GuardOption = Annotated[str, typer.Option(help="strict, default, off or none.")]
TuneOption = Annotated[
    str,
    typer.Option(
        metavar="MINUTES|off|auto", help="Search for settings so long first, on a part of the topic's train split."
    ),
]
TestOption = Annotated[
    str | None, typer.Option(help="A topic, or pairs that are not trained on, to forecast flips of.")
]


def minutes_of(tune: str) -> float | Literal["auto"] | None:
    """Minutes of ``--tune``; None: off. Raises InputError for what is none of these."""
    if tune == "off":
        return None
    if tune == "auto":
        return "auto"
    try:
        return float(tune)
    except ValueError:
        raise InputError(f"--tune is '{tune}'", hint="give minutes, auto or off") from None


def _known_backend(name: str) -> str:
    """Refused before anything is begun."""
    from conviction.models.backends import check_backend_name

    return check_backend_name(name)


def _allow_outside(context: typer.Context, allowed: bool) -> bool:
    """While the command runs, topics may name files outside of their folders."""
    if allowed:
        from conviction.data.topic import files_outside

        context.with_resource(files_outside())
    return allowed


@dataclass(frozen=True)
class LoadOptions:
    """How models are loaded, and topics: every command that loads a model may read a topic."""

    backend: Annotated[
        str,
        typer.Option(callback=_known_backend, help="What computes: transformers, or another of `conviction models`."),
    ] = "transformers"
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto"
    dtype: Annotated[str, typer.Option(help="auto (measured), fp32, bf16 or fp16.")] = "auto"
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that a hub model brings.")
    ] = False

    base: Annotated[
        str | None,
        typer.Option(
            help="Of an adapter or another change: the model that it is put on, in place of the one that it names. "
            "What only a folder names is not fetched."
        ),
    ] = None

    allow_outside: Annotated[
        bool,
        typer.Option(
            "--allow-outside",
            callback=_allow_outside,
            help="A topic may name files outside of its folder: only for topics that you trust.",
        ),
    ] = False

    def loader(self, model: str | None = None) -> Callable[..., LanguageModel]:
        """Loads a model by its name; the keywords of the loader tell one command from another.

        model  the one that the command is asked about. Raises InputError for a base that it has no use for
        """
        if self.base is not None and model is not None:
            from conviction.models.loading import check_has_base

            check_has_base(model)
        given = asdict(self)
        del given["allow_outside"]
        return partial(_load_named, **{name: given[name] for name in given if name != "base" or self.base is not None})


def _load_named(
    model: str, backend: str, device: str, dtype: str, trust_remote_code: bool, base: str | None = None
) -> LanguageModel:
    """Load a model, and say so if it cannot be scored in packs. A base is put under changes alone."""
    from conviction.models.loading import change_record, load_model

    loaded = load_model(
        model,
        backend=backend,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        base=None if change_record(model) is None else base,
        log=log,
    )
    check = loaded.describe().get("self_check", {})
    if not check.get("packed", True):
        log(f"note: {check['reason']}")
    return loaded


@dataclass(frozen=True)
class JobOptions:
    """An intervention, with what it is applied to and its settings."""

    name: Annotated[str, typer.Argument(help="An intervention: `conviction interventions` lists them.")]
    topic: TopicArgument = None
    data: DataOption = None
    columns: ColumnsOption = None
    model: BaseOption = None
    option: Annotated[list[str] | None, typer.Option("-o", "--option", help="A field: -o beta=0.1")] = None
    config: Annotated[Path | None, typer.Option(help="A YAML with TRL's or mlx-lm-lora's keys.")] = None
    preset: Annotated[str | None, typer.Option(help="report-run1, report-run2 or report-run3.")] = None
    guard: GuardOption = "default"

    def names(self, folder: Path) -> Names:
        """What sentences about the next step call things."""
        from conviction.reporting.next_steps import Names

        return Names(run=str(folder), topic=self.topic, data=self.data, model=self.model)

    def read(self) -> tuple[Job, Source]:
        """The preset, the config and the options merged, and the data; notes on what had no use go to stderr."""
        from conviction.config.plan import assemble
        from conviction.data.columns import parse_columns
        from conviction.verbs.inputs import as_source

        job = assemble(
            self.name,
            topic=self.topic,
            data=self.data,
            columns=parse_columns(self.columns),
            model=self.model,
            options=self.option or [],
            config=self.config,
            preset=self.preset,
            guard=self.guard,
        )
        for note in job.notes:
            log(f"note: {note}")
        return job, as_source(job.source())
