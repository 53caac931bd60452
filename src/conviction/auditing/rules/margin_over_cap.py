"""PD403 margin-over-cap: to flip a pair takes a reward margin that the guard calls a sign of collapse

## What it does
For each pair that the model ranks the wrong way round by c nats (whole answers), DPO
ranks it right from a reward margin of β·c on (Chen et al., arXiv 2405.19534). Finds pairs
whose β·c exceeds the guard's `margin_cap`. A note; a warning from one pair in ten on.

## Why it is bad
Either these pairs are not flipped, or margins go where runs have collapsed. The first run
of the report that this project began with asked for some 60 nats: 6 at β = 0.1, and its
margins "exploded" on the way there. It is arithmetic, so it can be known before the first
step.

## Example
Rejected answers of 40 tokens that the model finds 1 nat per token likelier: c = 40, and
at β = 0.1 a margin of 4.

## What to do
Take a β with β·c under the cap for most pairs (the message names one), shorter answers
(c grows with length), or leave out the pairs that ask for most.

## How the limit was set
The cap is the guard's. On SmolLM2-135M at β = 0.1: of the belief kit 24 % are over it, of
TruthfulQA 14 %, of HH (harmless-base, 250 pairs), whose answers are long, 30 %; of the
politeness kit one pair, of the brevity kit none.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from conviction.auditing.row import AuditRow, shown
from conviction.auditing.rule import MODEL, AuditContext, Rule, RuleFinding, Worst
from conviction.core.wording import counted, percent, rounded_down

COMMON = 0.10
MOST = 0.95  # of the pairs that the advised beta lets pass


class _Check:
    def __init__(self, context: AuditContext) -> None:
        self.beta, self.cap = context.beta, context.margin_cap
        self.shortfalls: list[float] = []
        self.over: list[int] = []
        self.worst = Worst()

    def observe(self, row: AuditRow, /) -> None:
        short = max(0.0, -row.scores.logp_margin)
        self.shortfalls.append(short)
        if self.beta * short > self.cap:
            self.over.append(row.number)
            margin = round(self.beta * short, 2)
            self.worst.add(short, row.number, nats=round(short, 1), margin=margin, prompt=shown(row.question))

    def metrics(self) -> dict[str, float]:
        """Margins at the planned β, and the β at which 95 % of the pairs stay under the cap."""
        if not self.shortfalls:
            return {}
        most = float(np.quantile(self.shortfalls, MOST))
        return {
            "beta": self.beta,
            "cap": self.cap,
            "over": len(self.over),
            "largest_margin": round(self.beta * max(self.shortfalls), 2),
            "fitting_beta": min(self.beta, rounded_down(self.cap / most)) if most > 0 else self.beta,
        }

    def findings(self) -> Iterable[RuleFinding]:
        if not self.over:
            return
        m, share = self.metrics(), len(self.over) / len(self.shortfalls)
        yield RuleFinding(
            message=f"{counted(len(self.over), 'pair')} ({percent(share)}) with a flip only at a reward margin over "
            f"{self.cap:g} (β = {self.beta:g}; the largest needs {m['largest_margin']:.1f})",
            advice=(
                f"β = {m['fitting_beta']:g} lets {percent(MOST)} of the pairs flip below it; or leave these out"
                if m["fitting_beta"] < self.beta
                else "leave these out, or shorten their answers"
            ),
            rows=self.over,
            evidence=self.worst.evidence,
            level="warning" if share >= COMMON else "note",
        )


RULE = Rule(code="PD403", name="margin-over-cap", since="0.1.0", sees="measured", needs=MODEL, begin=_Check)
