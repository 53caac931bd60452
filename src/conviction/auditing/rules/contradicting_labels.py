"""PD203 contradicting-labels: one row prefers what another rejects

## What it does
Finds rows with the same conversation and the same two answers, the other way round.

## Why it is bad
The two gradients cancel at the start and pull in turn later on: noise with full weight.
Beyond a few percent, such rows also bound the accuracy that anyone can reach, so that a
reward model or a DPO run looks worse than it is.

## Example
    {"prompt": "Tea?", "chosen": "Yes, please.", "rejected": "No."}
    {"prompt": "Tea?", "chosen": "No.", "rejected": "Yes, please."}

## What to do
Decide which is meant and remove the other, or both. If annotators disagree in many rows,
say so to the loss: `-o loss=robust -o label_smoothing=0.1`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from conviction.auditing.row import AuditRow, shown
from conviction.auditing.rule import SHOWN, AuditContext, Rule, RuleFinding
from conviction.core.wording import counted


class _Check:
    def __init__(self, _: AuditContext) -> None:
        self.first: dict[tuple[int, bool], int] = {}
        self.pairs: list[tuple[int, int]] = []
        self.evidence: list[dict[str, Any]] = []

    def observe(self, row: AuditRow, /) -> None:
        chosen, rejected = row.answer_keys
        if chosen == rejected:
            return
        key = hash((row.prompt_key, min(chosen, rejected), max(chosen, rejected)))
        opposite = self.first.get((key, chosen > rejected))
        if opposite is not None:
            self.pairs.append((opposite, row.number))
            if len(self.evidence) < SHOWN:
                self.evidence.append({"row": row.number, "against": opposite, "prompt": shown(row.question)})
        self.first.setdefault((key, chosen < rejected), row.number)

    def findings(self) -> Iterable[RuleFinding]:
        if self.pairs:
            yield RuleFinding(
                message=f"{counted(len(self.pairs), 'row')} against an earlier one with the answers swapped",
                advice="decide which is meant and remove the other; if many: -o loss=robust",
                rows=sorted({number for pair in self.pairs for number in pair}),
                evidence=self.evidence,
            )

    def metrics(self) -> Mapping[str, Any]:
        return {"pairs_of_rows": len(self.pairs)}


RULE = Rule(code="PD203", name="contradicting-labels", since="0.1.0", level="error", begin=_Check)
