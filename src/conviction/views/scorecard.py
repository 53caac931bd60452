"""A scorecard as text, JSON or Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conviction.reporting.scorecard_words import paragraphs
from conviction.views.console import write_json
from conviction.views.text import Format, show, show_lines

if TYPE_CHECKING:
    from conviction.probing.records import Scorecard

__all__ = ["show_scorecard"]


def show_scorecard(card: Scorecard, form: Format) -> None:
    """Print a scorecard to stdout."""
    if form == "json":
        write_json(card.model_dump(mode="json"))
        return
    header, body = _rows(card)
    show(f"{card.model} on '{card.topic}': mean log-probability per token (nats)", header, body, form)
    for title, lines in paragraphs(card):
        show_lines(title, lines, form)


def _rows(card: Scorecard) -> tuple[list[str], list[list[str]]]:
    poles = list(card.rows[0].logp_mean)
    header = ["question", *poles, "gap", "winner"]
    body = [[r.question, *(f"{r.logp_mean[p]:.2f}" for p in poles), f"{r.gap_nats:+.2f}", r.winner] for r in card.rows]
    return header, body
