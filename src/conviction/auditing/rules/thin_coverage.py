"""PD502 thin-coverage: many pairs about few questions

## What it does
Counts the questions behind the pairs: the effective number of prompts is one over the sum
of their squared shares, which is the plain number if all are asked equally often. Found
if one prompt has more than a tenth of 50 pairs or more, or if the effective number is
less than half of the distinct ones. With a topic it also says which of the propositions
in its train split no prompt asks (equal in three fifths of the words); found if that is
more than half of them. Pairs that ask none of them are in words of their own: a note.

## Why it is bad
A view is more than one sentence. What is trained on one question moves its wording, and
the probe, which asks about other propositions of the same view, tells it apart.

## Example
100 pairs, 60 of them with the prompt "What makes people gain weight?".

## What to do
Spread the pairs over the propositions that the evidence names.

## How the limit was set
In HH (harmless-base, test) and TruthfulQA hardly a prompt comes twice; the built-in kits
cover all of their train propositions, each in one or two wordings. Propositions are
matched by the words of their questions, for want of better: TF-IDF similarity of whole
items was tried and does not tell propositions of one topic apart (own 0.16, others 0.18).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from conviction.auditing.row import AuditRow, jaccard, shown
from conviction.auditing.rule import SHOWN, TOPIC, AuditContext, Rule, RuleFinding
from conviction.core.segmentation import words
from conviction.core.wording import percent

SIMILAR = 0.6
LARGEST, MIN_PAIRS = 0.1, 50
EVEN = 0.5


class _Check:
    def __init__(self, context: AuditContext) -> None:
        items = context.topic.of_role("target", "paraphrase") if context.topic else ()
        self.asked = [(i.proposition, frozenset(words(i.question))) for i in items if i.split == "train"]
        self.covered: set[str] = set()
        self.prompts: Counter[int] = Counter()
        self.texts: dict[int, tuple[int, str]] = {}

    def observe(self, row: AuditRow, /) -> None:
        key = row.prompt_key
        if key not in self.prompts and self.asked:
            message = frozenset(words(row.question))
            self.covered |= {p for p, asked in self.asked if jaccard(message, asked) >= SIMILAR}
        self.prompts[key] += 1
        if self.prompts[key] == 2:
            self.texts[key] = (row.number, shown(row.question))

    def findings(self) -> Iterable[RuleFinding]:
        m = self.metrics()
        pairs = self.prompts.total()
        (largest, count), *_ = self.prompts.most_common(1) or [(0, 0)]
        uneven = m["effective_prompts"] < EVEN * m["prompts"]
        if pairs >= MIN_PAIRS and (count > LARGEST * pairs or uneven):
            number, text = self.texts[largest]
            yield RuleFinding(
                message=f"{pairs:,} pairs are about {m['effective_prompts']:.0f} questions: one of them has "
                f"{percent(count / pairs)} of the pairs",
                advice="spread the pairs over more questions",
                evidence=[{"row": number, "pairs": count, "prompt": text}],
            )
        missing = sorted({p for p, _ in self.asked} - self.covered)
        if self.asked and not self.covered:
            yield RuleFinding(
                message="the pairs ask none of the topic's training propositions in its words",
                advice="if they mean to, reword the prompts or add the questions to the topic",
                level="note",
            )
        elif len(missing) > len(self.covered):
            yield RuleFinding(
                message=f"{len(missing)} of the topic's {len(missing) + len(self.covered)} training propositions are "
                "asked by no pair",
                advice="write pairs about them",
                evidence=[{"proposition": name} for name in missing[:SHOWN]],
            )

    def metrics(self) -> Mapping[str, Any]:
        pairs = max(1, self.prompts.total())
        squares = sum((count / pairs) ** 2 for count in self.prompts.values())
        results = {"prompts": len(self.prompts), "effective_prompts": round(1 / squares, 1) if squares else 0.0}
        propositions = {p for p, _ in self.asked}
        return {
            **results,
            **({"covered": len(self.covered), "propositions": len(propositions)} if propositions else {}),
        }


RULE = Rule(code="PD502", name="thin-coverage", since="0.1.0", uses=TOPIC, begin=_Check)
