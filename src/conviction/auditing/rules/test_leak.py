"""PD204 test-leak: a training prompt is one of the topic's test questions

## What it does
Compares every prompt with the questions that the topic keeps for testing: equal, or
equal in at least four fifths of their words (Jaccard similarity of word sets).

## Why it is bad
`conviction probe` measures on these questions whether a view has moved. If they were
trained on, the measure shows that sentences were learnt by heart.

## Example
With `--topic obesity`, whose test split asks it in these words:

    {"prompt": "What makes people gain weight?", "chosen": "…", "rejected": "…"}

## What to do
Take these rows out of the training data, or move the proposition to the topic's train split.

## How the limit was set
The built-in kits keep propositions apart by split; the nearest train and test questions
share half of their words, so 0.8 accuses none of them and finds an exchanged word in a
question of nine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from conviction.auditing.row import AuditRow, jaccard, shown
from conviction.auditing.rule import TOPIC, AuditContext, Hits, Rule, RuleFinding
from conviction.core.segmentation import words

SIMILAR = 0.8


class _Check:
    def __init__(self, context: AuditContext) -> None:
        items = context.topic.items if context.topic else ()
        self.tests = [(i.id, frozenset(words(i.question))) for i in items if i.split == "test"]
        self.known: dict[int, str | None] = {}
        self.hits = Hits()

    def observe(self, row: AuditRow, /) -> None:
        if row.prompt_key not in self.known:
            self.known[row.prompt_key] = self._nearest(frozenset(words(row.question)))
        item = self.known[row.prompt_key]
        if item is not None:
            self.hits.add(row.number, {"test_item": item, "prompt": shown(row.question)})

    def _nearest(self, asked: frozenset[str]) -> str | None:
        size = len(asked)
        for name, test in self.tests:
            if SIMILAR * size <= len(test) <= size / SIMILAR and jaccard(asked, test) >= SIMILAR:
                return name
        return None

    def findings(self) -> Iterable[RuleFinding]:
        advice = "take them out of the training data, or move the proposition to the train split"
        return self.hits.findings("{rows} with a question that the topic keeps for testing", advice)

    def metrics(self) -> Mapping[str, Any]:
        return {"rows": len(self.hits.rows), "test_questions": len(self.tests)}


RULE = Rule(code="PD204", name="test-leak", since="0.1.0", level="error", needs=TOPIC, begin=_Check)
