"""PD402 belief-flip: most pairs ask the model to change its mind

## What it does
Counts the pairs in which the untouched model finds the rejected answer likelier, both as
a whole and per token, and says by how many nats. Found if they are more than 60 % and
that is no accident (lower 95 % bound over 50 %).

## Why it is bad
Preference tuning shifts weight between answers that a model could give; that is a taste.
Where it holds the other view in most pairs, the data asks for a flip of belief: Chen et
al. (arXiv 2405.19534) found that DPO corrects few wrong rankings even where the loss
falls. It can be done, but it costs nats, and whatever else the weights held pays for it.
The project's own beginning asked this, 5 of 5, without knowing.

## Example
Pairs for the insulin model of weight gain, on a model that holds "calories in, calories out".

## What to do
Know it before the night: `conviction probe` measures the preference with controls. Then take a
system prompt or retrieval instead, or train with a guard (PD403 says what margin it takes).

## How the limit was set
On SmolLM2-135M: the belief kit 72 % of the pairs wrong, which is found; HH (harmless-base,
250 pairs) 27 %; the politeness kit 32 %, the brevity kit none. TruthfulQA, made of what
people believe wrongly: 57 %, just under the limit.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from conviction.auditing.row import AuditRow, shown
from conviction.auditing.rule import MODEL, AuditContext, Rule, RuleFinding, Worst
from conviction.core.statistics import win_share
from conviction.core.wording import percent

SHARE, SURE = 0.6, 0.5


class _Check:
    def __init__(self, _: AuditContext) -> None:
        self.seen = 0
        self.wrong: list[tuple[int, float, float]] = []
        self.worst = Worst()

    def observe(self, row: AuditRow, /) -> None:
        m = row.scores
        self.seen += 1
        if m.logp_margin < 0 and m.logp_margin_mean < 0:
            self.wrong.append((row.number, m.logp_margin, m.logp_margin_mean))
            nats, per_token = round(-m.logp_margin, 1), round(-m.logp_margin_mean, 3)
            self.worst.add(-m.logp_margin, row.number, nats=nats, per_token=per_token, prompt=shown(row.question))

    def metrics(self) -> dict[str, float]:
        """Of the pairs ranked the wrong way: how many, and by how much."""
        if not self.seen:
            return {}
        share = win_share(len(self.wrong), self.seen)
        results = {"wrong": len(self.wrong), "pairs": self.seen, "share_low": round(share.low, 4)}
        if not self.wrong:
            return results
        nats, per_token = (
            np.median([logp_margin for _, logp_margin, _ in self.wrong]),
            np.median([p for _, _, p in self.wrong]),
        )
        return {**results, "median_nats": round(-float(nats), 2), "median_per_token": round(-float(per_token), 3)}

    def findings(self) -> Iterable[RuleFinding]:
        m = self.metrics()
        if not m or m["wrong"] <= SHARE * m["pairs"] or m["share_low"] <= SURE:
            return
        yield RuleFinding(
            message=f"the model prefers the rejected answer, whole and per token, in {m['wrong']:,} of "
            f"{m['pairs']:,} pairs ({percent(m['wrong'] / m['pairs'])}), half of them by {m['median_nats']:.0f} nats "
            f"or more ({m['median_per_token']:.2f} per token): a change of belief, not of taste",
            advice="`conviction probe` first; consider a system prompt or retrieval, or train under the guard",
            rows=[number for number, _, _ in self.wrong],
            evidence=self.worst.evidence,
        )


RULE = Rule(code="PD402", name="belief-flip", since="0.1.0", sees="measured", needs=MODEL, begin=_Check)
