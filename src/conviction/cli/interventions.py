"""The command `interventions`."""

from __future__ import annotations

from typing import Annotated

import typer

from conviction.cli.options import FormatOption
from conviction.views.text import show

__all__ = ["interventions"]


def interventions(
    name: Annotated[str | None, typer.Argument(help="One of them, for its fields.")] = None,
    form: FormatOption = "text",
) -> None:
    """List the ways to move a model: what each changes, needs and costs; or the fields of one."""
    from conviction.core.options import list_fields
    from conviction.interventions import INTERVENTIONS, find_intervention

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
