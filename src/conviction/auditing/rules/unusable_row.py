"""PD101 unusable-row: a row that holds no preference pair

## What it does
Finds rows that cannot be trained on: broken JSON, bytes that are no UTF-8, a field
that is missing, null or empty, a conversation whose roles or turns do not fit, a
tool call, an image. Rows are read by the code that `conviction apply` reads them
with, so what passes here will load there.

## Why it is bad
A trainer either stops at such a row, hours into the night, or takes what is left of it:
of an empty answer that is the end-of-turn token, which is then preferred or rejected.

## Example
    {"prompt": "How do I boil an egg?", "chosen": "For ten minutes.", "rejected": ""}

## What to do
Repair or remove the rows. Each line of evidence says what is wrong with one of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from conviction.auditing.row import AuditRow
from conviction.auditing.rule import SHOWN, AuditContext, Rule, RuleFinding
from conviction.core.wording import counted


class _Check:
    def __init__(self, _: AuditContext) -> None:
        self.problems: dict[tuple[str, str], list[int]] = {}
        self.evidence: list[dict[str, Any]] = []

    def observe(self, row: AuditRow, /) -> None:
        self.problems.setdefault((row.problem, row.hint), []).append(row.number)
        if len(self.evidence) < SHOWN:
            self.evidence.append({"row": row.number, "problem": row.problem})

    def findings(self) -> Iterable[RuleFinding]:
        if not self.problems:
            return
        rows = sorted(number for numbers in self.problems.values() for number in numbers)
        kinds = Counter({key: len(numbers) for key, numbers in self.problems.items()}).most_common(3)
        message = "; ".join(f"{problem} ({count})" for (problem, _), count in kinds)
        yield RuleFinding(
            message=f"{counted(len(rows), 'row')} without a usable pair: {message}",
            advice="; ".join(dict.fromkeys(hint for (_, hint), _ in kinds)),
            rows=rows,
            evidence=self.evidence,
        )

    def metrics(self) -> Mapping[str, Any]:
        return {"rows": sum(map(len, self.problems.values()))}


RULE = Rule(code="PD101", name="unusable-row", since="0.1.0", level="error", sees="unusable", begin=_Check)
