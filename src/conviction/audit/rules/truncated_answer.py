"""PD106 truncated-answer: an answer that stops in the middle

## What it does
Finds answers of twelve words or more whose last line of prose ends in a letter or a
comma, or in a word that cannot end a sentence (`and`, `the`, `of` …). Lists, headings,
code, links and addresses are left alone.

## Why it is bad
Answers cut by a token limit teach the model to stop anywhere: the end-of-turn token
is trained after them. If one side was cut more often, the cut is what separates it.

## Example
    {"prompt": "Why is the sky blue?", "chosen": "Because short waves are scattered more strongly by the", …}

## What to do
Generate again with a higher limit, or remove the pairs.

## How the limit was set
Of 2,312 pairs of HH (harmless-base, test), written by a model with a generous limit,
5 % are found; most lack nothing but a full stop. TruthfulQA has no full stops at all,
but only 2 % of its answers are long enough. So: a warning if more than one row in ten
is found, or if the shares of chosen and rejected lie further than 5 % apart; else a note.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from conviction.audit.row import AuditRow
from conviction.audit.rule import Fault, Hits, Rule, each_row
from conviction.core.wording import counted, percent

MIN_WORDS = 12
COMMON, APART = 0.10, 0.05

_OPEN_END = re.compile(r"[\w,]\Z")
_DANGLING = re.compile(r"\b(?:and|or|but|the|a|an|of|to|in|for|with|that|which|is|are|was|by|from|as)\Z", re.IGNORECASE)
_NO_PROSE = re.compile(r"^\s*(?:[-*•|#>]|\d+[.)])|```|https?://|\S+@\S+")


def _cut(text: str) -> bool:
    end = text.rstrip()
    if not _OPEN_END.search(end[-1:]):
        return False
    last = end.rpartition("\n")[2]
    if _NO_PROSE.search(last):
        return False
    return len(last.split()) >= MIN_WORDS or (len(end.split()) >= MIN_WORDS and _DANGLING.search(end) is not None)


def _look(row: AuditRow) -> Mapping[str, Any] | None:
    sides = [(name, text) for name, text in row.sides if _cut(text)]
    if not sides:
        return None
    end = " ".join(sides[0][1].split())[-40:]
    return {"where": "both" if len(sides) == 2 else sides[0][0], "end": f"…{end}"}


def _tell(hits: Hits) -> Fault:
    only = {side: hits.where[side] / hits.seen for side in ("chosen", "rejected")}
    apart = abs(only["chosen"] - only["rejected"])
    places = ", ".join(f"{count} in {where}" for where, count in hits.where.most_common())
    return Fault(
        message=f"{counted(len(hits.rows), 'row')} ({percent(hits.share)}) with an answer cut short ({places})",
        advice="write or generate them again with a higher limit, or remove them",
        rows=hits.rows,
        evidence=hits.evidence,
        level="warning" if hits.share > COMMON or apart > APART else "note",
    )


RULE = Rule(code="PD106", name="truncated-answer", since="0.2.0", begin=each_row(_look, _tell))
