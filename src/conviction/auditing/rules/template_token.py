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

from conviction.auditing.row import AuditRow, shown
from conviction.auditing.rule import Repair, Rule, each_row, place

_TOKENS = (
    *(f"<|{name}|>" for name in (
        "im_start", "im_end", "im_sep", "endoftext", "eot_id", "eom_id", "begin_of_text", "end_of_text",
        "start_header_id", "end_header_id", "user", "assistant", "system", "end", "return", "message", "channel",
        "endofprompt", "START_OF_TURN_TOKEN", "END_OF_TURN_TOKEN",
    )),
    "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "<start_of_turn>", "<end_of_turn>",
    "<｜User｜>", "<｜Assistant｜>", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>",
)  # fmt: skip
_ROLE = r"\n\n(?:Human|Assistant):|(?:^|\n)###\s?(?:Instruction|Response|Human|Assistant)(?::|\s*\n|\Z)"
_MARK = re.compile("|".join([*map(re.escape, _TOKENS), _ROLE]))
_SIGNS = re.compile(r"[<\[#]|\n\n[HA]")  # no mark without one of these; three times as fast


def _mark(text: str) -> str | None:
    """The first mark. Llama 2's <s> and </s> count at the ends of a text only: in HTML they strike words through."""
    if not _SIGNS.search(text):
        return None
    match = _MARK.search(text)
    if match is not None:
        return match[0].strip()
    lone = ("<s>" in text) != ("</s>" in text)
    if lone and text.lstrip().startswith("<s>"):
        return "<s>"
    return "</s>" if lone and text.rstrip().endswith("</s>") else None


def _strip(text: str) -> str:
    """Without the control tokens at its ends, and the spaces between and around them."""
    rest = text
    while (end := rest.rstrip()).endswith(_TOKENS) or (end.endswith("</s>") and "<s>" not in end):
        token = next(t for t in (*_TOKENS, "</s>") if end.endswith(t))
        rest = end[: -len(token)].rstrip()
    while (start := rest.lstrip()).startswith(_TOKENS) or (start.startswith("<s>") and "</s>" not in start):
        token = next(t for t in (*_TOKENS, "<s>") if start.startswith(t))
        rest = start[len(token) :].lstrip()
    return rest


def _look(row: AuditRow) -> Mapping[str, Any] | None:
    results = [(where, mark) for where, text in row.texts if (mark := _mark(text)) is not None]
    if not results:
        return None
    fixable = any(_strip(text) != text for _, text in row.sides)
    return {"where": place([where for where, _ in results]), "mark": shown(results[0][1]), "fixable": fixable}


ADVICE = "store texts without their template; --fix takes them off the ends of answers"
RULE = Rule(
    code="PD104",
    name="template-token",
    since="0.1.0",
    level="error",
    begin=each_row(_look, "{rows} with marks of a chat template ({places})", ADVICE),
    repair=Repair(edit=_strip),
)
