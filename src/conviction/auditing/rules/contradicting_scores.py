"""PD205 contradicting-scores: a score prefers the rejected answer

## What it does
Where columns hold a score of each answer (`score_chosen` and `score_rejected`, also as
`chosen_score`, `chosen-rating`, `chosen_rating` or `rating_chosen`), finds pairs whose rejected
answer has the higher one. Equal scores are counted in the measures only.

## Why it is bad
Order and score are two records of one judgement. Where they differ, one of them is wrong:
columns were exchanged, a pair was turned by hand, or the scores are on a scale whose best is the
lowest. Training follows the order and never sees the score.

## Example
    {"prompt": "Tea?", "chosen": "No.", "rejected": "Yes.", "score_chosen": 3.0, "score_rejected": 8.5}

## What to do
Look at the rows; exchange the answers or remove the pairs. If low scores are good, ignore this rule.

## How the limit was set
None is needed: each such pair contradicts itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from conviction.auditing.row import AuditRow, shown
from conviction.auditing.rule import AuditContext, Hits, Rule, RuleFinding


class _Check:
    def __init__(self, _: AuditContext) -> None:
        self.hits = Hits()
        self.equal = 0

    def observe(self, row: AuditRow, /) -> None:
        if row.given_scores is None:
            return
        chosen, rejected = row.given_scores
        self.hits.seen += 1
        self.equal += chosen == rejected
        if rejected > chosen:
            self.hits.add(row.number, {"chosen": chosen, "rejected": rejected, "prompt": shown(row.question)})

    def findings(self) -> Iterable[RuleFinding]:
        return self.hits.findings(
            "{pairs} ({share} of those with scores) whose rejected answer has the higher score",
            "exchange the answers, or remove these pairs",
        )

    def metrics(self) -> Mapping[str, Any]:
        if not self.hits.seen:
            return {}
        return {"scored": self.hits.seen, "contradicting": len(self.hits.rows), "equal": self.equal}


RULE = Rule(code="PD205", name="contradicting-scores", since="0.2.0", begin=_Check)
