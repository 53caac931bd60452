r"""PD108 stray-whitespace: spaces or line breaks around an answer

## What it does
Finds answers that end in white space, and pairs of which one begins with other white space
than the other. A space that both begin with is how texts that go on from a prompt are
stored. Transcripts are read without the spaces around their turns, as their format has them.

## Why it is bad
A leading space makes other tokens of the first word, a trailing line break becomes a
token that the end-of-turn token is then trained after. One side with it and one without
is a shortcut that survives every other check.

## Example
    {"prompt": "Tea?", "chosen": "Yes, please.\n", "rejected": "No."}

## What to do
Strip the answers; `--fix` takes white space off their ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conviction.auditing.row import AuditRow
from conviction.auditing.rule import Repair, Rule, each_row, place


def _look(row: AuditRow) -> Mapping[str, Any] | None:
    ends = [text[len(text.rstrip()) :] for _, text in row.sides]
    starts = [text[: len(text) - len(text.lstrip())] for _, text in row.sides]
    if starts[0] == starts[1]:
        starts = ["", ""]
    sides = [name for (name, _), start, end in zip(row.sides, starts, ends, strict=True) if start or end]
    if not sides:
        return None
    places = {"begins": repr(max(starts, key=len)), "ends": repr(max(ends, key=len))}
    return {
        "where": place(sides),
        **{place: space for place, space in places.items() if space != "''"},
        "fixable": any(ends),
    }


ADVICE = "strip the answers; --fix does at their ends"
RULE = Rule(
    code="PD108",
    name="stray-whitespace",
    since="0.1.0",
    begin=each_row(_look, "{rows} ({share}) with spaces around an answer ({places})", ADVICE),
    repair=Repair(edit=str.rstrip),
)
