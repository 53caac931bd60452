"""The commands `topics` and `topics new`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from conviction.cli.options import FormatOption
from conviction.views.text import log, show

__all__ = ["topics", "topics_app", "topics_new"]

topics_app = typer.Typer(
    help="List topic kits, or write a new one.", invoke_without_command=True, rich_markup_mode=None
)


@topics_app.callback()
def topics(context: typer.Context, form: FormatOption = "text") -> None:
    """List the built-in topic kits."""
    if context.invoked_subcommand is not None:
        return
    from conviction.data.topic import builtin_topics, load_topic

    body = []
    for name in builtin_topics():
        kit = load_topic(name)
        propositions = {i.proposition for i in kit.of_role("target")}
        poles = " / ".join(p + ("*" if p == kit.target else "") for p in kit.poles)
        texts = len(kit.documents_of(kit.target))
        body.append([name, kit.title, poles, *map(str, (len(propositions), len(kit.items), texts, len(kit.facts)))])
    head = ["name", "title", "poles", "propositions", "items", "documents", "facts"]
    show("Built-in topics (* target pole)", head, body, form)


@topics_app.command("new")
def topics_new(
    name: Annotated[str, typer.Argument(help="Name of the new topic, and of its folder.")],
) -> None:
    """Write a commented skeleton of a topic kit."""
    from conviction.data.topic_skeleton import write_skeleton

    folder = write_skeleton(Path(name))
    log(f"wrote {folder}/: edit it, then run `conviction probe {folder}`")
