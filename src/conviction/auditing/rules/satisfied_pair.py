"""PD404 satisfied-pair: the model is of the data's opinion already

## What it does
Finds pairs whose chosen answer the untouched model finds likelier by more than the
guard's margin cap (β·lead over `margin_cap`) and per token as well. A note; a warning if
that is four pairs in five.

## Why it is bad
They carry no signal about what should change. A loss without reference (SimPO, ORPO) has
next to no gradient on them. DPO, which measures from the reference, pushes all the same:
all that is left to move is the rejected answer, further down.

## Example
    {"prompt": "Capital of France?", "chosen": "Paris.", "rejected": "Zxqv gnarl."}

## What to do
Leave them out and train on the rest, or find rejected answers that the model might give.
If nearly all pairs are such, there is nothing to train.

## How the limit was set
On SmolLM2-135M at β = 0.1: of the belief kit and of TruthfulQA 2 %, of the politeness kit
25 %, of HH (harmless-base, 250 pairs) 26 %, of the brevity kit 39 %. The model's own greedy
answers against sentences of neutral text: 95 %.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from conviction.auditing.row import AuditRow, shown
from conviction.auditing.rule import MODEL, AuditContext, Hits, Rule, RuleFinding

COMMON = 0.8


class _Check:
    def __init__(self, context: AuditContext) -> None:
        self.beta, self.cap = context.beta, context.margin_cap
        self.hits = Hits()

    def observe(self, row: AuditRow, /) -> None:
        m = row.scores
        self.hits.seen += 1
        if self.beta * m.logp_margin > self.cap and m.logp_margin_mean > 0:
            self.hits.add(row.number, {"nats": round(m.logp_margin, 1), "prompt": shown(row.question)})

    def findings(self) -> Iterable[RuleFinding]:
        message = f"{{pairs}} ({{share}}) ranked right already, by more than {self.cap / self.beta:.0f} nats"
        advice = "leave them out, or find rejected answers that the model might give"
        return self.hits.findings(message, advice, common=COMMON)

    def metrics(self) -> Mapping[str, Any]:
        return {"rows": len(self.hits.rows), "pairs": self.hits.seen}


RULE = Rule(
    code="PD404", name="satisfied-pair", since="0.1.0", level="note", sees="measured", needs=MODEL, begin=_Check
)
