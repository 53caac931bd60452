"""PD103 identical-answers: chosen and rejected are the same text

## What it does
Finds pairs whose two answers differ in nothing but case and spaces.

## Why it is bad
The gradient of a preference loss is the difference of two gradients. For identical
answers it is zero, for answers that differ by a space it teaches the space.
Conversations that differ in an earlier turn only end up here as well: what is
trained is the last answer.

## Example
    {"prompt": "Tea?", "chosen": "Yes, please.", "rejected": "yes,  please."}

## What to do
Remove these rows (`--fix` does), and look where they come from: sampling twice at
temperature 0, or a join that went wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conviction.audit.row import AuditRow, shown
from conviction.audit.rule import Fault, Hits, Repair, Rule, each_row
from conviction.core.wording import counted


def _look(row: AuditRow) -> Mapping[str, Any] | None:
    return {"answer": shown(row.chosen)} if row.answer_keys[0] == row.answer_keys[1] else None


def _tell(hits: Hits) -> Fault:
    return Fault(
        message=f"{counted(len(hits.rows), 'pair')} with two identical answers",
        advice="remove them: they teach nothing",
        rows=hits.rows,
        evidence=hits.evidence,
    )


RULE = Rule(
    code="PD103",
    name="identical-answers",
    since="0.1.0",
    level="error",
    begin=each_row(_look, _tell),
    repair=Repair(drop=lambda: lambda row: _look(row) is not None),
)
