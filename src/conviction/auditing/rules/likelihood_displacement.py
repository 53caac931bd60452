"""PD405 likelihood-displacement: answers so alike to the model that both will sink

## What it does
Computes the centred hidden embedding similarity of each pair, CHES = ⟨Σh⁺, Σh⁻⟩ − ‖Σh⁺‖²,
and its length-normalised form, ⟨h̄⁺, h̄⁻⟩ − ‖h̄⁺‖² (Razin et al., arXiv 2410.08847): h are the
model's last hidden states at the positions that predict an answer's tokens, h̄ their mean.
The second, divided by ‖h̄⁺‖², does not depend on a model's scale: 0 is identical, −1 is
orthogonal. Found are pairs over 0. A note; a warning from one pair in five on.

## Why it is bad
Where the two answers look alike from inside, pushing the rejected one down drags the
chosen one along. Razin et al. saw refusals of Llama-3-8B-Instruct fall from 74 % to 33 %
in a run that preferred refusals, and mended it by leaving out the pairs of high CHES.

## Example
    {"prompt": "Tea?", "chosen": "Yes, please, two cups.", "rejected": "Yes, please, two mugs."}

## What to do
Leave these pairs out or rewrite them so that the answers differ in what they say early,
or tie the chosen answer down: `-o loss=dpop`, or `-o sft_weight=0.1`.

## How the limit was set
0 is where the answers are alike in full. `benchmarks/displacement.py` trained SmolLM2-135M with
DPO on fifths of TruthfulQA by this measure, 16 steps each. At a learning rate of 1e-3 the
chosen answers gained 0.65 nats per token in the lowest fifth (under −0.17), moved by −0.24,
−0.31 and +0.07 in the next three, and lost 0.41 in the highest (over −0.015). At 2e-4
nothing sank in any of them. So it tells the safest from the riskiest, and little between.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from conviction.auditing.row import AuditRow, shown
from conviction.auditing.rule import HIDDEN_STATES, AuditContext, Rule, RuleFinding, Worst
from conviction.core.wording import counted, percent

LIMIT = 0.0
COMMON = 0.2


class _Check:
    def __init__(self, _: AuditContext) -> None:
        self.ches: list[float] = []
        self.relative: list[float] = []
        self.rows: list[int] = []
        self.worst = Worst()

    def observe(self, row: AuditRow, /) -> None:
        m = row.scores
        if m.hidden_dot is None or not m.chosen_norm_sq:
            return
        ours, theirs = len(m.chosen.logprobs), len(m.rejected.logprobs)
        self.ches.append(m.hidden_dot - m.chosen_norm_sq)
        normalised = m.hidden_dot / (ours * theirs) - m.chosen_norm_sq / ours**2
        self.relative.append(normalised / (m.chosen_norm_sq / ours**2))
        if self.relative[-1] > LIMIT:
            self.rows.append(row.number)
            value, texts = self.relative[-1], {side: shown(text, 40) for side, text in row.sides}
            self.worst.add(value, row.number, ches=round(value, 3), **texts)

    def metrics(self) -> dict[str, float]:
        """Quantiles of CHES and of the relative form."""
        if not self.ches:
            return {}
        low, median, high = np.quantile(self.relative, (0.05, 0.5, 0.95))
        return {
            "ches_median": float(f"{np.median(self.ches):.4g}"),
            "relative_q05": round(float(low), 3),
            "relative_median": round(float(median), 3),
            "relative_q95": round(float(high), 3),
        }

    def findings(self) -> Iterable[RuleFinding]:
        if self.rows:
            share = len(self.rows) / len(self.relative)
            yield RuleFinding(
                message=f"{counted(len(self.rows), 'pair')} ({percent(share)}) whose answers look alike from inside "
                f"the model (normalised CHES over {LIMIT:g}): the chosen one may sink with the rejected one",
                advice="leave them out or rewrite them, or tie the chosen answer down: -o loss=dpop",
                rows=self.rows,
                evidence=self.worst.evidence,
                level="warning" if share >= COMMON else "note",
            )


RULE = Rule(
    code="PD405",
    name="likelihood-displacement",
    since="0.1.0",
    level="note",
    sees="measured",
    needs=HIDDEN_STATES,
    begin=_Check,
)
