"""PD501 too-few-pairs: what is learnt will not carry over to other questions

## What it does
Counts distinct pairs. Of the shift that n pairs reach on themselves, about n / (n + 29) carries
over to questions that were not trained on. Found if that is less than 40 %. With a model
also if flipping the median pair that it ranks wrongly is within the guard's `margin_cap`,
but flipping a held-out one, which takes β·c / (n / (n + 29)), is not.

## Why it is bad
With few pairs the weights learn the pairs. The training accuracy is 100 %, the probe on
the topic's test items does not move, and pushing on until it does takes margins at which
runs collapse.

## Example
Eight pairs: 22 % of the shift carries over, so that a flip on other questions takes nearly
five times the margin that it takes on the pairs.

## What to do
Write more pairs, about different claims: 29 for half, 87 for three quarters, 260 for nine
tenths. More epochs do not help; they widen the difference.

## How the limit was set
Measured: DPO with LoRA on SmolLM2-135M, 24 steps each, on 2 to 54 pairs of the belief kit
and of the politeness kit, two seeds (`benchmarks/few_pairs.py`, `results/few_pairs.json`):
4 pairs carried 0.09 to 0.13 of their shift over, 8: 0.21 to 0.25, 16: 0.34 to 0.37, 27:
0.48, 32: 0.54, 54: 0.66, whichever the kit. n / (n + 29) fits all 20 runs within 0.015
(root mean square). One small model and two kits: that it holds for others is unproven.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from conviction.auditing.row import AuditRow
from conviction.auditing.rule import MODEL, AuditContext, Rule, RuleFinding
from conviction.core.wording import counted, percent

HALF = 29
LEAST = 0.4


class _Check:
    def __init__(self, context: AuditContext) -> None:
        self.context = context
        self.pairs: set[int] = set()
        self.short: list[float] = []

    def observe(self, row: AuditRow, /) -> None:
        self.pairs.add(row.pair_key)
        if row.measured is not None and row.measured.logp_margin < 0:
            self.short.append(-row.measured.logp_margin)

    def findings(self) -> Iterable[RuleFinding]:
        m = self.metrics()
        if m["carries_over"] < LEAST:
            yield RuleFinding(
                message=f"{counted(m['distinct_pairs'], 'distinct pair')}: about {percent(m['carries_over'])} of what "
                "they learn carries over to other questions",
                advice=f"write more, about different claims: {HALF} for half, {3 * HALF} for three quarters",
            )
        elif m.get("margin", 0.0) <= self.context.margin_cap < m.get("margin_held_out", 0.0):
            yield RuleFinding(
                message=f"too few pairs for the shift: they flip at a margin of {m['margin']:.1f}, other questions at "
                f"{m['margin_held_out']:.1f}, over the guard's {self.context.margin_cap:g}",
                advice="write more pairs, about different claims; or take a smaller beta",
            )

    def metrics(self) -> Mapping[str, Any]:
        n = len(self.pairs)
        results = {"distinct_pairs": n, "carries_over": round(n / (n + HALF), 3)}
        if not self.short:
            return results
        margin = self.context.beta * float(np.median(self.short))
        return {**results, "margin": round(margin, 2), "margin_held_out": round(margin * (n + HALF) / n, 2)}


RULE = Rule(code="PD501", name="too-few-pairs", since="0.1.0", uses=MODEL, begin=_Check)
