r"""PD108 stray-whitespace: spaces or line breaks around an answer

## What it does
Finds answers that end in white space, or begin with it. Transcripts are read without the
spaces around their turns, as their format has them.

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

from conviction.audit.row import AuditRow
from conviction.audit.rule import Fault, Hits, Repair, Rule, each_row
from conviction.core.wording import counted, percent


def _look(row: AuditRow) -> Mapping[str, Any] | None:
    sides = [(name, text) for name, text in row.sides if text[:1].isspace() or text[-1:].isspace()]
    if not sides:
        return None
    name, text = sides[0]
    place = {"begins": repr(text[: len(text) - len(text.lstrip())]), "ends": repr(text[len(text.rstrip()) :])}
    return {"where": "both" if len(sides) == 2 else name, **{k: v for k, v in place.items() if v != "''"}}


def _tell(hits: Hits) -> Fault:
    places = ", ".join(f"{count} in {where}" for where, count in hits.where.most_common())
    return Fault(
        message=f"{counted(len(hits.rows), 'row')} ({percent(hits.share)}) with spaces around an answer ({places})",
        advice="strip the answers; --fix does at their ends",
        rows=hits.rows,
        evidence=hits.evidence,
    )


RULE = Rule(
    code="PD108",
    name="stray-whitespace",
    since="0.1.0",
    begin=each_row(_look, _tell),
    repair=Repair(edit=str.rstrip),
)
