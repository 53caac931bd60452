"""PD106 truncated-answer: an answer that stops in the middle

## What it does
Finds answers of twelve words or more whose last line of prose ends in a comma or in a word
that cannot end a sentence (`and`, `the`, `of` …). Where four answers in five close with a
full stop, an end without one counts as well. Lists, headings, code, links and addresses are
left alone.

## Why it is bad
Answers cut by a token limit teach the model to stop anywhere: the end-of-turn token
is trained after them. If one side was cut more often, the cut is what separates it.

## Example
    {"prompt": "Why is the sky blue?", "chosen": "Because short waves are scattered more strongly by the", …}

## What to do
Generate again with a higher limit, or remove the pairs.

## How the limit was set
A warning if more than one row in ten is found, or if the shares of chosen and rejected lie
further than 5 points apart and that is no accident (sign test, p < 0.01); else a note. Of
HH (harmless-base, test) 10 % are found, and a look at them says rightly: its answers were
written under a token limit, and the chosen ones cut more often (7 %) than the rejected
ones (3 %). TruthfulQA, whose answers have no full stops, has one row of 813; the built-in kits none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from conviction.auditing.row import AuditRow
from conviction.auditing.rule import SHOWN, AuditContext, Rule, RuleFinding, place
from conviction.core.segmentation import word_count
from conviction.core.statistics import sign_test
from conviction.core.wording import counted, percent

MIN_WORDS = 12
COMMON, APART, ALPHA = 0.10, 0.05, 0.01
CLOSED = 0.8

_DANGLING = re.compile(
    r"(?:[,，、]|\b(?:and|or|but|because|the|a|an|of|to|in|for|with|that|which|is|are|was|by|from|as|your|their|its))\Z"
)
_NO_PROSE = re.compile(r"^\s*(?:[-*•|#>]|\d+[.)])|```|https?://|\S+@\S+")

End = tuple[str, str, bool]
"""Side, the last characters, and whether it breaks off for certain."""


def _open_end(text: str) -> tuple[str, bool] | None:
    end = text.rstrip()
    if not (end[-1:].isalnum() or end[-1:] in ",，、") or word_count(end) < MIN_WORDS:
        return None
    if _NO_PROSE.search(end.rpartition("\n")[2]):
        return None
    return f"…{' '.join(end[-80:].split())[-40:]}", _DANGLING.search(end) is not None


class _Check:
    def __init__(self, _: AuditContext) -> None:
        self.seen = self.long = self.closed = 0
        self.open: list[tuple[int, list[End]]] = []

    def observe(self, row: AuditRow, /) -> None:
        self.seen += 1
        ends: list[End] = []
        for (side, text), surface in zip(row.sides, row.surfaces, strict=True):
            if surface.words < MIN_WORDS:
                continue
            self.long += 1
            self.closed += surface.closed
            if (result := _open_end(text)) is not None:
                ends.append((side, *result))
        if ends:
            self.open.append((row.number, ends))

    @cached_property
    def cut(self) -> list[tuple[int, list[End]]]:
        """Rows with the ends that count here."""
        if self.closed >= CLOSED * self.long:
            return self.open
        sure = [(number, [end for end in ends if end[2]]) for number, ends in self.open]
        return [(number, ends) for number, ends in sure if ends]

    def metrics(self) -> Mapping[str, Any]:
        sides = [side for _, ends in self.cut for side, *_ in ends]
        return {"rows": len(self.cut), "chosen": sides.count("chosen"), "rejected": sides.count("rejected")}

    def findings(self) -> Iterable[RuleFinding]:
        if not self.cut:
            return
        m, share = self.metrics(), len(self.cut) / self.seen
        apart = abs(m["chosen"] - m["rejected"]) > APART * self.seen and sign_test(m["chosen"], m["rejected"]) < ALPHA
        yield RuleFinding(
            message=f"{counted(len(self.cut), 'row')} ({percent(share)}) with an answer cut short "
            f"({m['chosen']} chosen, {m['rejected']} rejected)",
            advice="write or generate them again with a higher limit, or remove them",
            rows=[number for number, _ in self.cut],
            evidence=[
                {"row": number, "where": place([side for side, *_ in ends]), "end": ends[0][1]}
                for number, ends in self.cut[:SHOWN]
            ],
            level="warning" if share > COMMON or apart else "note",
        )


RULE = Rule(code="PD106", name="truncated-answer", since="0.1.0", begin=_Check)
