"""The command `rule`."""

from __future__ import annotations

from typing import Annotated

import typer

from conviction.cli.options import FormatOption
from conviction.views.findings import show_page, show_rules

__all__ = ["rule"]


def rule(
    code: Annotated[str | None, typer.Argument(help="PD301, or length-gap.")] = None,
    form: FormatOption = "text",
) -> None:
    """The page of one of audit's rules; without a code, the list of all."""
    from conviction.auditing.linter import RULES, find_rule, rule_page

    if code is None:
        show_rules([find_rule(known) for known in RULES], form)
        return
    show_page(code, rule_page(code), form)
