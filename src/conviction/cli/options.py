"""Arguments and options that several commands have, and the model that they name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from conviction.views.text import Format, log

if TYPE_CHECKING:
    from conviction.core.protocols import LanguageModel

__all__ = [
    "EXIT_FINDINGS",
    "BackendOption",
    "BaseOption",
    "BenignOption",
    "ColumnsOption",
    "ConfigOption",
    "DataOption",
    "DeviceOption",
    "DtypeOption",
    "FormatOption",
    "GuardOption",
    "ModelOption",
    "NameArgument",
    "PresetOption",
    "RunOption",
    "SetOption",
    "TestOption",
    "TopicArgument",
    "TrustOption",
    "load_named",
    "loader",
]

EXIT_FINDINGS = 1
"""Exit code of a command that did its work and found something: findings, a stop by the guard, missing arms."""


def _known_backend(name: str) -> str:
    """Refused before anything is begun."""
    from conviction.models.backends import check_backend_name

    return check_backend_name(name)


BackendOption = Annotated[
    str, typer.Option(callback=_known_backend, help="What computes: transformers, or another of `conviction models`.")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
DtypeOption = Annotated[str, typer.Option(help="auto (measured), fp32, bf16 or fp16.")]
TrustOption = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that a hub model brings.")]
RunOption = Annotated[Path | None, typer.Option(help="Run folder; an unfinished one is continued.")]
FormatOption = Annotated[Format, typer.Option("--format", help="How to print the result.")]
BenignOption = Annotated[int, typer.Option(min=0, help="Benign training steps before durability is read; 0: none.")]
NameArgument = Annotated[str, typer.Argument(help="What moves it: `conviction interventions` lists them.")]
TopicArgument = Annotated[str | None, typer.Argument(help="A built-in topic, or the folder of one.")]
DataOption = Annotated[str | None, typer.Option(help="A file, a folder or a hub name, instead of a topic.")]
ColumnsOption = Annotated[
    str | None,
    typer.Option(help='Columns of other names: prompt=Question,chosen="Better answer"; input= leaves one out.'),
]
BaseOption = Annotated[str | None, typer.Option(help="An embedded model, a local folder or a hub id.")]
ModelOption = Annotated[str, typer.Option(help="An embedded model, a local folder, a .gguf file or a hub id.")]
SetOption = Annotated[list[str] | None, typer.Option("-o", "--option", help="A field: -o beta=0.1")]
ConfigOption = Annotated[Path | None, typer.Option(help="A YAML with TRL's or mlx-lm-lora's keys.")]
PresetOption = Annotated[str | None, typer.Option(help="report-run1, report-run2 or report-run3.")]
GuardOption = Annotated[str, typer.Option(help="strict, default, off or none.")]
TestOption = Annotated[
    str | None, typer.Option(help="A topic, or pairs that are not trained on, to forecast flips of.")
]


def load_named(model: str, backend: str, device: str, dtype: str, trust_remote_code: bool) -> LanguageModel:
    """Load a model, and say so if it cannot be scored in packs."""
    from conviction.models import load_model

    loaded = load_model(
        model, backend=backend, device=device, dtype=dtype, trust_remote_code=trust_remote_code, log=log
    )
    check = loaded.describe().get("self_check", {})
    if not check.get("packed", True):
        log(f"note: {check['reason']}")
    return loaded


def loader(backend: str, device: str, dtype: str, trust_remote_code: bool) -> Callable[..., LanguageModel]:
    """``load_named`` as the options of a command say; its keywords tell one command from another."""
    return partial(load_named, backend=backend, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
