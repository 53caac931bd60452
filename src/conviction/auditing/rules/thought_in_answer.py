r"""PD109 thought-in-answer: answers that bring a thought of their own

## What it does
Finds answers with a thought in them (`<think>…</think>`, `[THINK]…[/THINK]`), and says where: on
one side, on both, in some of the rows or in all. A thought that is never closed counts, too.

## Why it is bad
A thought is trained and scored like any other text of the answer, and it is often the longer part: log-probs
per token are then those of the thought. Where one side thinks and the other does not, or some rows do, what is
learnt first is whether to think. `conviction` puts such an answer in the place of the empty thought that the
chat template may write; other trainers write both, one after the other.

## Example
    {"prompt": "Tea?", "chosen": "<think>\nPolite.\n</think>\n\nYes, please.", "rejected": "No."}

## What to do
Give all answers a thought, in the format of the model's chat template, or none. Thoughts on both sides of
every row are a note; they need a model that thinks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from conviction.auditing.row import AuditRow
from conviction.auditing.rule import AuditContext, Hits, Rule, RuleFinding, place

_THOUGHT = re.compile(r"[<\[]/?(?:think|thinking|THINK|seed:think)[>\]]")


class _Check:
    def __init__(self, _: AuditContext) -> None:
        self.hits = Hits()

    def observe(self, row: AuditRow, /) -> None:
        self.hits.seen += 1
        tags = {side: tag[0] for side, text in row.sides if (tag := _THOUGHT.findall(text))}
        if tags:
            self.hits.add(row.number, {"where": place([*tags]), "tags": " ".join(tags.values())})

    def findings(self) -> Iterable[RuleFinding]:
        throughout = self.hits.where["both"] == self.hits.seen
        advice = "give all answers a thought, or none: else it is learnt first whether to think"
        if throughout:
            advice = "make sure that the model's chat template writes thoughts in this format"
        message = "{rows} ({share}) with a thought in an answer ({places})"
        return self.hits.findings(message, advice, level="note" if throughout else None)

    def metrics(self) -> Mapping[str, Any]:
        return {"rows": len(self.hits.rows), **({"where": dict(self.hits.where)} if self.hits.where else {})}


RULE = Rule(code="PD109", name="thought-in-answer", since="0.2.0", begin=_Check)
