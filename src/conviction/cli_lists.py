"""Commands that list what is there: models, topics, interventions; and one that writes a new topic."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from conviction.cli_options import FormatOption
from conviction.render import say, show

__all__ = ["interventions", "models", "topics", "topics_app", "topics_new"]

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


def interventions(
    name: Annotated[str | None, typer.Argument(help="One of them, for its fields.")] = None,
    form: FormatOption = "text",
) -> None:
    """List the ways to move a model: what each changes, needs and costs; or the fields of one."""
    from conviction.core.settings import list_fields
    from conviction.intervene import INTERVENTIONS, find_intervention

    if name is None:
        kinds = [find_intervention(known) for known in sorted(INTERVENTIONS)]
        body = [[k.name, k.changes, k.needs, k.costs] for k in kinds]
        show(
            "Interventions (`conviction interventions NAME` for the fields of one)",
            ["name", "changes", "needs", "costs"],
            body,
            form,
        )
        return
    kind = find_intervention(name)
    fields = [[f.name, str(f.default), f.meaning] for f in list_fields(kind)]
    show(f"{kind.name}: changes {kind.changes}", ["field", "default", "meaning"], fields, form)


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
        texts = len(kit.documents_of(kit.target))
        body.append([name, kit.title, poles, *map(str, (len(propositions), len(kit.items), texts, len(kit.facts)))])
    head = ["name", "title", "poles", "propositions", "items", "documents", "facts"]
    show("Built-in topics (* target pole)", head, body, form)


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
