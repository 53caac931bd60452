"""PD407 over-length: pairs that do not fit in the model's context or template

## What it does
Finds pairs whose conversation and longer answer, under the model's chat template and
tokenizer, exceed its context, and conversations that the template refuses (two turns of the user in a
row, for some).

## Why it is bad
`conviction apply` leaves them out and says so; others cut them, at whichever end, and
train on a beginning without an end or an answer without its question. The rules that ask
the model have not seen these rows.

## Example
An answer of 9,000 tokens for a model whose context is 8,192.

## What to do
Shorten them or leave them out, or take a model with a longer context.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conviction.auditing.row import AuditRow
from conviction.auditing.rule import MODEL, Rule, each_row


def _look(row: AuditRow) -> Mapping[str, Any] | None:
    if row.measured is not None:
        return None
    return {"characters": len(row.question) + max(len(row.chosen), len(row.rejected))}


MESSAGE = "{pairs} ({share}) beyond the model's context, or refused by its template"
RULE = Rule(
    code="PD407",
    name="over-length",
    since="0.1.0",
    needs=MODEL,
    begin=each_row(_look, MESSAGE, "shorten them or leave them out"),
)
