r"""PD104 template-token: a chat template's own marks inside a text

## What it does
Finds control tokens of chat templates (`<|im_end|>`, `<|eot_id|>`, `[INST]`,
`<start_of_turn>`, `</s>` …) and role headers that begin a turn nobody asked for
(`\n\nHuman:`, `### Response:`) in prompts and answers.

## Why it is bad
The trainer puts its template around every row. A mark inside is either encoded as the
real control token, so that the model learns to end its turn twice or to speak for the
user, or as five odd tokens that occur nowhere else. If only one side of the pairs has
it, it is the first thing the model learns.

## Example
    {"prompt": "Tea?", "chosen": "Yes, please.<|im_end|>", "rejected": "No.<|im_end|>"}

## What to do
Store texts without their template. `--fix` takes control tokens off the beginning and
the end of an answer; what stands in the middle needs an eye.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from conviction.audit.row import AuditRow, shown
from conviction.audit.rule import Fault, Hits, Repair, Rule, each_row
from conviction.core.wording import counted

_CONTROL = (
    r"<\|(?:im_start|im_end|im_sep|endoftext|eot_id|eom_id|begin_of_text|end_of_text|start_header_id|end_header_id"
    r"|user|assistant|system|end|END_OF_TURN_TOKEN|START_OF_TURN_TOKEN|endofprompt|return|message|channel)\|>"
    r"|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>|<｜(?:User|Assistant|end▁of▁sentence|begin▁of▁sentence)｜>"
)
_ROLE = r"\n\n(?:Human|Assistant):|(?:^|\n)###\s?(?:Instruction|Response|Human|Assistant)\b:?"
_MARK = re.compile(f"{_CONTROL}|{_ROLE}")
_EDGES = re.compile(rf"\A(?:\s*(?:{_CONTROL}))+\s*|\s*(?:(?:{_CONTROL})\s*)+\Z")
_SIGNS = re.compile(r"[<\[#]|\n\n[HA]")  # no mark without one of these; three times as fast


def _look(row: AuditRow) -> Mapping[str, Any] | None:
    texts = [*row.sides, ("prompt", row.question)]
    found = [(where, m) for where, text in texts if _SIGNS.search(text) and (m := _MARK.search(text))]
    if not found:
        return None
    sides = {where for where, _ in found}
    where, mark = found[0]
    return {"where": "both" if sides >= {"chosen", "rejected"} else where, "mark": shown(mark[0].strip())}


def _tell(hits: Hits) -> Fault:
    places = ", ".join(f"{count} in {where}" for where, count in hits.where.most_common())
    return Fault(
        message=f"{counted(len(hits.rows), 'row')} with marks of a chat template ({places})",
        advice="store texts without their template; --fix takes them off the ends of answers",
        rows=hits.rows,
        evidence=hits.evidence,
    )


RULE = Rule(
    code="PD104",
    name="template-token",
    since="0.1.0",
    level="error",
    begin=each_row(_look, _tell),
    repair=Repair(edit=lambda text: _EDGES.sub("", text)),
)
