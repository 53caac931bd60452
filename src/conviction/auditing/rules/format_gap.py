"""PD302 format-gap: one side has marks that the other has not

## What it does
Counts lists, headings, bold, code, stock openers, refusals, questions and closing marks
at the end, and the commonest two first words, in chosen and in rejected. Found if a mark is
in one side more often by 20 percentage points, and it is no accident (McNemar's exact
test over pairs where only one side has it, p < 0.001).

## Why it is bad
A mark that separates the sides is learnt before anything that takes reading: bold text
and lists raise preferences on their own (Zhang et al., arXiv 2409.11704), an opener is
one token. Where rejected answers refuse and chosen ones do not, the pairs teach to
comply, whatever the topic says.

## Example
    {"prompt": "Tea?", "chosen": "Sure! **Tea** it is.", "rejected": "It is tea."}

## What to do
Write both sides in one format (ask the generator of each for the other's), or remove the
mark from both. If the format is what you want to teach, set `form_matched: false` in the
topic, or ignore this rule.

## How the limit was set
HH (harmless-base, test): the largest differences are 4 points, in closing marks
and in refusals, the latter what its annotators were asked for. Pairs from TruthfulQA: 1 point.
The belief kit: none. Two faults of the report that this project began with, planted into it: 98 and 100 points.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from conviction.auditing.row import AuditRow, shown
from conviction.auditing.rule import SHOWN, AuditContext, Rule, RuleFinding
from conviction.auditing.surface import MARKS
from conviction.core.segmentation import first_words
from conviction.core.statistics import sign_test
from conviction.core.wording import percent

APART, ALPHA = 0.20, 0.001
OPENINGS = 20_000  # counted at once; the rarest half is forgotten beyond


class _Tally:
    """Pairs in which only one side has a mark: how many, and the first of each side."""

    def __init__(self) -> None:
        self.only = Counter[str]()
        self.first: dict[str, list[int]] = {"chosen": [], "rejected": []}

    def add(self, side: str, row: int) -> None:
        self.only[side] += 1
        if len(self.first[side]) < SHOWN:
            self.first[side].append(row)


class _Check:
    def __init__(self, context: AuditContext) -> None:
        self.meant = context.topic is not None and not context.topic.form_matched
        self.seen = 0
        self.marks = {mark: _Tally() for mark in MARKS}
        self.openings: dict[str, _Tally] = {}

    def observe(self, row: AuditRow, /) -> None:
        self.seen += 1
        chosen, rejected = row.surfaces
        for mark, tally in self.marks.items():
            here, there = bool(getattr(chosen, mark)), bool(getattr(rejected, mark))
            if here != there:
                tally.add("chosen" if here else "rejected", row.number)
        first, second = (shown(first_words(text[:60], 2), 30) for text in (row.chosen, row.rejected))
        if first != second:
            self.openings.setdefault(first, _Tally()).add("chosen", row.number)
            self.openings.setdefault(second, _Tally()).add("rejected", row.number)
        if len(self.openings) > OPENINGS:
            self.openings = dict(self._commonest(OPENINGS // 2))

    def _commonest(self, n: int) -> list[tuple[str, _Tally]]:
        return sorted(self.openings.items(), key=lambda item: -item[1].only.total())[:n]

    def findings(self) -> Iterable[RuleFinding]:
        if self.meant:
            return
        named = [(MARKS[mark], tally) for mark, tally in self.marks.items()]
        named += [(f"answers that begin with {text!r}", tally) for text, tally in self._commonest(10)]
        yield from (self._fault(what, tally) for what, tally in named if self._apart(**tally.only))

    def _apart(self, chosen: int = 0, rejected: int = 0) -> bool:
        return abs(chosen - rejected) >= APART * self.seen and sign_test(chosen, rejected) < ALPHA

    def _fault(self, what: str, tally: _Tally) -> RuleFinding:
        shares = {side: percent(tally.only[side] / self.seen) for side in ("chosen", "rejected")}
        side = max(tally.only, key=lambda s: tally.only[s])
        return RuleFinding(
            message=f"{what}: only in chosen in {shares['chosen']} of the pairs, only in rejected in "
            f"{shares['rejected']}",
            advice="write both sides in one format, or take the mark out of both",
            evidence=[{"row": number, "only_in": side} for number in tally.first[side]],
        )

    def metrics(self) -> Mapping[str, Any]:
        seen = max(1, self.seen)
        return {m: round((t.only["chosen"] - t.only["rejected"]) / seen, 4) for m, t in self.marks.items()}


RULE = Rule(code="PD302", name="format-gap", since="0.1.0", begin=_Check)
