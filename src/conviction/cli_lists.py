"""Commands that list what is there: models and topics; and one that writes a new topic."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from conviction.cli_options import FormatOption
from conviction.render import say, show

__all__ = ["models", "topics", "topics_app", "topics_new"]

topics_app = typer.Typer(
    help="List topic kits, or write a new one.", invoke_without_command=True, rich_markup_mode=None
)


def models(form: FormatOption = "text") -> None:
    """List the models that are known here, and which are cached."""
    from conviction.core.storage import cache_dir
    from conviction.models.embedded import EMBEDDED, hub_models

    body = [
        [m.name, m.title, m.licence, f"{_megabytes(m.folder)} MB in {m.folder}" if m.cached else "not yet fetched"]
        for m in EMBEDDED.values()
    ]
    body += [[name, "in the hub's cache", "", size] for name, size in hub_models()]
    show(
        "Models (any hub id, local folder or .gguf file works too)",
        ["name", "what", "licence", "cached"],
        body,
        form,
    )
    say(f"cache: {cache_dir()} (CONVICTION_CACHE chooses another; safe to delete)")


@topics_app.callback()
def topics(context: typer.Context, form: FormatOption = "text") -> None:
    """List the built-in topic kits."""
    if context.invoked_subcommand is not None:
        return
    from conviction.core.topic import builtin_topics, load_topic

    body = []
    for name in builtin_topics():
        kit = load_topic(name)
        propositions = {i.proposition for i in kit.of_role("target")}
        poles = " / ".join(p + ("*" if p == kit.target else "") for p in kit.poles)
        body.append([name, kit.title, poles, str(len(propositions)), str(len(kit.items))])
    show("Built-in topics (* target pole)", ["name", "title", "poles", "propositions", "items"], body, form)


@topics_app.command("new")
def topics_new(
    name: Annotated[str, typer.Argument(help="Name of the new topic, and of its folder.")],
) -> None:
    """Write a commented skeleton of a topic kit."""
    from conviction.core.skeleton import write_skeleton

    folder = write_skeleton(Path(name))
    say(f"wrote {folder}/: edit it, then run `conviction probe {folder}`")


def _megabytes(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) // 2**20
