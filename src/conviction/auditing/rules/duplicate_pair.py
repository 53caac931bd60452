"""PD201 duplicate-pair: the same pair twice

## What it does
Finds rows whose conversation and both answers stood in an earlier row. Spaces around the
texts do not count.

## Why it is bad
A pair that stands there k times has k times its weight, and reaches a margin that the
others do not: the first step to a collapse on few texts. Copies on both sides of a
train/test split make the test measure memory (Lee et al., arXiv 2107.06499).

## Example
    {"prompt": "Tea?", "chosen": "Yes, please.", "rejected": "No."}
    {"prompt": "Tea?", "chosen": "Yes, please.", "rejected": "No."}

## What to do
Keep one of each; `--fix` keeps the first. Train for more epochs if that was the aim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from conviction.auditing.row import AuditRow, shown
from conviction.auditing.rule import AuditContext, Hits, Repair, Rule, RuleFinding


class _Check:
    def __init__(self, _: AuditContext) -> None:
        self.first: dict[int, int] = {}
        self.hits = Hits()

    def observe(self, row: AuditRow, /) -> None:
        first = self.first.setdefault(row.pair_key, row.number)
        if first != row.number:
            self.hits.add(row.number, {"same_as": first, "prompt": shown(row.question)})

    def findings(self) -> Iterable[RuleFinding]:
        return self.hits.findings("{rows} already there before", "keep one of each; --fix keeps the first")

    def metrics(self) -> Mapping[str, Any]:
        return {"rows": len(self.hits.rows), "distinct_pairs": len(self.first)}


def _seen_before() -> Callable[[AuditRow], bool]:
    seen: set[int] = set()

    def drop(row: AuditRow) -> bool:
        key = row.pair_key
        known = key in seen
        seen.add(key)
        return known

    return drop


RULE = Rule(code="PD201", name="duplicate-pair", since="0.1.0", begin=_Check, repair=Repair(drop=_seen_before))
