"""PD401 policy-mismatch: answers that the model would never write

## What it does
Compares the log-probability per token of chosen and of rejected answers with that of the
model's own samples (temperature 1, the first 24 tokens, 8 prompts of the data). Found if
one side lies 2 nats per token or more below the samples, in the mean over the pairs, or if
it lies below them and one side is 1 nat per token less likely than the other.

## Why it is bad
On answers that are unlikely already, the gradient that pushes rejected ones down takes
probability from everything near them and heaps it on the likeliest token (Ren &
Sutherland, arXiv 2407.10490): the squeezing that ends in dots and dashes. Preference
losses work best on answers near the policy (Tajwar et al., 2404.14367; Guo et al.,
2402.04792). If only one side is far off, another model wrote it, and its manner is what
the pairs teach: the project's own beginning had rejected answers from another model.

## Example
Chosen answers sampled from the model itself, rejected ones taken from a newspaper.

## What to do
Sample both sides from the model that you train and let a judge label them, or train with
`sft` on both sides first (Ren & Sutherland's remedy). At least take both from one source.

## How the limit was set
On SmolLM2-135M, nats per token, own samples / chosen / rejected: HH (harmless-base, 250
pairs) −3.6 / −2.7 / −2.7; TruthfulQA −2.8 / −2.3 / −1.9; the politeness kit −2.5 / −3.4 / −3.7;
the belief kit −2.6 / −3.8 / −3.4. With sentences from elsewhere as rejected answers: the
belief kit −2.6 / −3.8 / −5.1; the model's greedy answers as chosen ones −2.3 / −0.8 / −5.0.
Only these two are found. Eight samples give the level to about half a nat (other prompts of
HH gave −2.7), which is why the limits are whole nats.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from conviction.auditing.row import AuditRow, shown
from conviction.auditing.rule import AuditContext, Rule, RuleFinding, Worst

LIMIT, APART = 2.0, 1.0


class _Check:
    def __init__(self, context: AuditContext) -> None:
        self.own = [token for score in context.own for token in score.logprobs]
        self.chosen: list[float] = []
        self.rejected: list[float] = []
        self.worst = {"chosen": Worst(), "rejected": Worst()}

    def observe(self, row: AuditRow, /) -> None:
        for side, score, text in (
            ("chosen", row.scores.chosen, row.chosen),
            ("rejected", row.scores.rejected, row.rejected),
        ):
            getattr(self, side).append(score.logp_mean)
            nats = round(score.logp_mean, 2)
            self.worst[side].add(-score.logp_mean, row.number, side=side, nats_per_token=nats, text=shown(text))

    def metrics(self) -> dict[str, float]:
        """Nats per token: of the samples over all tokens, of answers in the mean of pairs."""
        if not self.chosen or not self.own:
            return {}
        return {
            "own_samples": round(float(np.mean(self.own)), 3),
            "own_standard_error": round(float(np.std(self.own) / np.sqrt(len(self.own))), 3),
            "chosen": round(float(np.mean(self.chosen)), 3),
            "rejected": round(float(np.mean(self.rejected)), 3),
        }

    def findings(self) -> Iterable[RuleFinding]:
        m = self.metrics()
        if not m:
            return
        side, other = sorted(("chosen", "rejected"), key=lambda s: m[s])
        far = [s for s in ("chosen", "rejected") if m["own_samples"] - m[s] >= LIMIT]
        if not far and m[side] < m["own_samples"] and m[other] - m[side] >= APART:
            far = [side]
        if far:
            yield RuleFinding(
                message=f"{' and '.join(far)} answers are far from what the model writes: {m[side]:.2f} nats per token "
                f"in {side}, {m[other]:.2f} in {other}, {m['own_samples']:.2f} in its own samples",
                advice="take both sides from the model itself, or train with sft on both sides first",
                evidence=self.worst[side].evidence,
            )


RULE = Rule(
    code="PD401",
    name="policy-mismatch",
    since="0.1.0",
    sees="measured",
    needs=frozenset({"model", "samples"}),
    begin=_Check,
)
