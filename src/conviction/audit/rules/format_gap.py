"""PD302 format-gap: one side has marks that the other has not

## What it does
Counts lists, headings, bold, code, stock openers, refusals, questions and full stops at
the end, and the commonest two first words, in chosen and in rejected. Found if a mark is
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
HH (harmless-base, test): the largest differences are 4 points, in full stops and in
refusals, the latter what its annotators were asked for. Pairs from TruthfulQA: 1 point.
The belief kit: none. The seed's two faults, planted into it: 83 and 100 points.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from conviction.audit.row import AuditRow, shown
from conviction.audit.rule import SHOWN, Fault, Rule, Setting
from conviction.audit.surface import MARKS
from conviction.core.wording import percent

APART, ALPHA = 0.20, 0.001
OPENINGS = 20_000  # counted at once; the rarest half is forgotten beyond


class _Check:
    def __init__(self, setting: Setting) -> None:
        self.meant = setting.topic is not None and not setting.topic.form_matched
        self.seen = 0
        self.only: dict[str, tuple[Counter[str], list[dict[str, Any]]]] = {m: (Counter(), []) for m in MARKS}
        self.openings: Counter[tuple[str, str]] = Counter()

    def see(self, row: AuditRow, /) -> None:
        self.seen += 1
        chosen, rejected = row.surfaces
        for mark, (only, evidence) in self.only.items():
            here, there = bool(getattr(chosen, mark)), bool(getattr(rejected, mark))
            if here != there:
                side = "chosen" if here else "rejected"
                only[side] += 1
                if len(evidence) < SHOWN:
                    evidence.append({"row": row.number, "mark": MARKS[mark], "only_in": side})
        first, second = (shown(" ".join(text[:60].split()[:2]), 30) for text in (row.chosen, row.rejected))
        if first != second:
            self.openings["chosen", first] += 1
            self.openings["rejected", second] += 1
        if len(self.openings) > OPENINGS:
            self.openings = Counter(dict(self.openings.most_common(OPENINGS // 2)))

    def faults(self) -> Iterable[Fault]:
        if self.meant:
            return
        for mark, (only, evidence) in self.only.items():
            if self._apart(only["chosen"], only["rejected"]):
                side = max(only, key=lambda s: only[s])
                yield self._fault(MARKS[mark], only, [e for e in evidence if e["only_in"] == side])
        for text in dict.fromkeys(opening for (_, opening), _ in self.openings.most_common(10)):
            only = Counter({side: self.openings[side, text] for side in ("chosen", "rejected")})
            if self._apart(only["chosen"], only["rejected"]):
                yield self._fault(f"answers that begin with {text!r}", only, [])

    def _apart(self, chosen: int, rejected: int) -> bool:
        from scipy.stats import binomtest

        if not self.seen or abs(chosen - rejected) / self.seen < APART:
            return False
        return float(binomtest(chosen, chosen + rejected).pvalue) < ALPHA

    def _fault(self, what: str, only: Counter[str], evidence: list[dict[str, Any]]) -> Fault:
        shares = {side: percent(only[side] / self.seen) for side in ("chosen", "rejected")}
        return Fault(
            message=f"{what}: only in chosen in {shares['chosen']} of the pairs, only in rejected in "
            f"{shares['rejected']}",
            advice="write both sides in one format, or take the mark out of both",
            evidence=evidence,
        )

    def measures(self) -> Mapping[str, Any]:
        seen = max(1, self.seen)
        return {mark: round((only["chosen"] - only["rejected"]) / seen, 4) for mark, (only, _) in self.only.items()}


RULE = Rule(code="PD302", name="format-gap", since="0.1.0", begin=_Check)
