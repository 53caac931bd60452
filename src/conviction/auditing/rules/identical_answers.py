"""PD103 identical-answers: chosen and rejected are the same text

## What it does
Finds pairs whose two answers are equal, but for the spaces around them: an error. Pairs
whose answers differ in case or in spaces alone are a warning.

## Why it is bad
The gradient of a preference loss is the difference of two gradients. For identical
answers it is zero, for answers that differ by a space it teaches the space.
Conversations that differ in an earlier turn only end up here as well: what is
trained is the last answer.

## Example
    {"prompt": "Tea?", "chosen": "Yes, please.", "rejected": "Yes, please."}

## What to do
Remove these rows (`--fix` removes those with equal answers), and look where they come
from: sampling twice at temperature 0, or a join that went wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from conviction.auditing.row import AuditRow, normal, shown
from conviction.auditing.rule import AuditContext, Hits, Repair, Rule, RuleFinding


def _equal(row: AuditRow) -> bool:
    return row.answer_keys[0] == row.answer_keys[1]


class _Check:
    def __init__(self, _: AuditContext) -> None:
        self.equal, self.alike = Hits(), Hits()

    def observe(self, row: AuditRow, /) -> None:
        equal = _equal(row)
        if not equal and normal(row.chosen) != normal(row.rejected):
            return
        (self.equal if equal else self.alike).add(row.number, {"answer": shown(row.chosen)})

    def findings(self) -> Iterable[RuleFinding]:
        yield from self.equal.findings("{pairs} with two identical answers", "remove them: they teach nothing")
        message = "{pairs} with answers that differ in case or spaces alone"
        advice = "remove them, unless that is what they are to teach"
        yield from self.alike.findings(message, advice, level="warning", fixable=False)

    def metrics(self) -> Mapping[str, Any]:
        return {"equal": len(self.equal.rows), "alike": len(self.alike.rows)}


RULE = Rule(
    code="PD103",
    name="identical-answers",
    since="0.1.0",
    level="error",
    begin=_Check,
    repair=Repair(drop=lambda: _equal),
)
