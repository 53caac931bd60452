"""PD406 pessimistic-pair: DPO will be content before these pairs are

## What it does
Finds pairs whose rejected answer the reference finds likelier as a whole, by c nats
(pessimistic, in the words of Yuan et al., arXiv 2602.11902), and reckons what is left of
DPO's gradient at the moment when the order flips: the weight σ(−β·c), 0.5 at the start.
Found if a third of the pairs are pessimistic and half of these have a weight under 0.25.

## Why it is bad
DPO measures from the reference. A pair that has gone half the way to the right order
looks to it as good as a pair that had been right all along: the loss falls, reward
accuracy is 100 %, and the model still prefers the rejected answer. At β·c = 6 the weight
at the flip is 0.0025.

## Example
β = 0.1 and c = 17 nats: at the flip DPO's gradient weighs 0.15.

## What to do
`-o loss=hypo` keeps the full weight until the order is right (under the guard: full
weight also breaks things sooner), a smaller β makes the weight fall later, or leave the
hopeless pairs out.

## How the limit was set
Yuan et al. found 45 % of their pairs pessimistic. On SmolLM2-135M at β = 0.1, share and
weight at the flip: the belief kit 76 % and 0.14, HH (harmless-base, 250 pairs) 46 % and
0.02, which are found; TruthfulQA 66 % and 0.28, the politeness kit 39 % and 0.35.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from conviction.auditing.row import AuditRow, shown
from conviction.auditing.rule import MODEL, AuditContext, Rule, RuleFinding, Worst
from conviction.core.wording import counted, percent

SHARE, WEIGHT = 1 / 3, 0.25


class _Check:
    def __init__(self, context: AuditContext) -> None:
        self.beta = context.beta
        self.seen = 0
        self.rows: list[int] = []
        self.nats: list[float] = []
        self.worst = Worst()

    def observe(self, row: AuditRow, /) -> None:
        m = row.scores
        self.seen += 1
        if m.logp_margin < 0:
            self.rows.append(row.number)
            self.nats.append(-m.logp_margin)
            weight = float(f"{self._weight(-m.logp_margin):.2g}")
            prompt = shown(row.question)
            self.worst.add(
                -m.logp_margin, row.number, nats=round(-m.logp_margin, 1), weight_at_flip=weight, prompt=prompt
            )

    def _weight(self, nats: float) -> float:
        return 1 / (1 + math.exp(min(700.0, self.beta * nats)))

    def metrics(self) -> dict[str, float]:
        """How many, and the median weight of DPO's gradient at their flip."""
        if not self.seen:
            return {}
        weight = {"weight_at_flip": float(f"{self._weight(float(np.median(self.nats))):.3g}")} if self.nats else {}
        return {"pessimistic": len(self.rows), "pairs": self.seen, "beta": self.beta, **weight}

    def findings(self) -> Iterable[RuleFinding]:
        m = self.metrics()
        if self.rows and len(self.rows) >= SHARE * self.seen and m["weight_at_flip"] < WEIGHT:
            yield RuleFinding(
                message=f"{counted(len(self.rows), 'pair')} ({percent(len(self.rows) / self.seen)}) in the wrong "
                f"order; at β = {self.beta:g} half of them flip with {m['weight_at_flip']:.2g} or less of DPO's "
                "gradient left (0.50 at the start)",
                advice="-o loss=hypo under the guard, a smaller beta, or leave the hopeless pairs out",
                rows=self.rows,
                evidence=self.worst.evidence,
            )


RULE = Rule(code="PD406", name="pessimistic-pair", since="0.1.0", sees="measured", needs=MODEL, begin=_Check)
