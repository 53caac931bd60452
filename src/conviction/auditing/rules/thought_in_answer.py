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
from collections.abc import Mapping
from typing import Any

from conviction.auditing.row import AuditRow
from conviction.auditing.rule import Hits, Rule, RuleFinding, each_row, place
from conviction.core.wording import counted, percent

_THOUGHT = re.compile(r"[<\[]/?(?:think|thinking|THINK|seed:think)[>\]]")


def _look(row: AuditRow) -> Mapping[str, Any] | None:
    tags = {side: _THOUGHT.findall(text) for side, text in row.sides}
    sides = [side for side, found in tags.items() if found]
    if not sides:
        return None
    return {"where": place(sides), "tags": " ".join(tags[sides[0]])}


def _tell(hits: Hits) -> RuleFinding:
    throughout = hits.where["both"] == hits.seen
    return RuleFinding(
        message=f"{counted(len(hits.rows), 'row')} ({percent(hits.share)}) with a thought in an answer ({hits.places})",
        advice="make sure that the model's chat template writes thoughts in this format"
        if throughout
        else "give all answers a thought, or none: else it is learnt first whether to think",
        level="note" if throughout else None,
    )


RULE = Rule(code="PD109", name="thought-in-answer", since="0.3.0", begin=each_row(_look, _tell))
