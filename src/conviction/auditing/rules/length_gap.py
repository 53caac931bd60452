"""PD301 length-gap: one side is longer

## What it does
Compares the lengths of chosen and rejected answers, in characters: the geometric mean of
their ratio, the effect size of its logarithm (Cohen's d_z), and, of the pairs whose
lengths differ by more than a tenth, the share in which the longer one is chosen. Found if
the mean ratio is 1.5 or more (or 2/3 or less), or if most pairs differ so and the longer
one is chosen in 75 % of them or more (or 25 % or less), and it is no accident (sign test,
p < 0.01).

## Why it is bad
DPO sums log-probabilities over tokens, so length is the cheapest way to a margin (Park et
al., arXiv 2403.19159; Singhal et al., 2310.03716): the model learns to write long, or to
stop. The project's own beginning was such a set: chosen answers 3.6 times as long, reward
margins that exploded, then dots and dashes.

## Example
    {"prompt": "Tea?", "chosen": "Yes, please, with a little milk and, if there is any, …", "rejected": "No."}

## What to do
Write answers of like length, or drop the pairs with the largest ratio. Losses that count
per token help (`-o loss=dpo_norm`, `simpo`), but they do not take the shortcut away. If
length is what you want to teach, set `length_matched: false` in the topic, or ignore this rule.

## How the limit was set
HH (harmless-base, test), judged by people: mean ratio 0.81, longer chosen in 44 %. Pairs
from TruthfulQA: 1.08 and 62 %. The belief kit: 1.01, and two lengths in a hundred that
differ at all; the brevity kit, whose point it is: 0.14 and none. The report that this
project began with had 3.6. A
limit nearer to 1 would accuse what people judged in good faith.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable

import numpy as np

from conviction.auditing.row import AuditRow
from conviction.auditing.rule import AuditContext, Rule, RuleFinding, Worst
from conviction.core.statistics import sign_test
from conviction.core.wording import percent

RATIO, SHARE, ALPHA = 1.5, 0.75, 0.01
DIFFERENT = math.log(1.1)


class _Check:
    def __init__(self, context: AuditContext) -> None:
        self.meant = context.topic is not None and not context.topic.length_matched
        self.logs = array("d")
        self.extremes = Worst()

    def observe(self, row: AuditRow, /) -> None:
        chosen, rejected = len(row.chosen), len(row.rejected)
        log = math.log(chosen / rejected)
        self.logs.append(log)
        self.extremes.add(abs(log), row.number, chosen_characters=chosen, rejected_characters=rejected)

    def findings(self) -> Iterable[RuleFinding]:
        m = self.metrics()
        if self.meant or not m or m["p_value"] >= ALPHA:
            return
        ratio = math.exp(abs(m["mean_log"]))
        longer = m["longer_chosen"]
        if ratio >= RATIO:
            side = "chosen" if m["mean_log"] > 0 else "rejected"
            message = f"{side} answers are {ratio:.1f} times as long (geometric mean; d = {m['effect_size']:+.2f})"
        elif m["differ"] > 0.5 and not 1 - SHARE < longer < SHARE:
            side = "longer" if longer > 0.5 else "shorter"
            message = (
                f"of answers that differ in length, the {side} one is chosen in {percent(max(longer, 1 - longer))}"
            )
        else:
            return
        yield RuleFinding(
            message=message,
            advice="match lengths, drop the most uneven pairs, or take a loss per token (-o loss=dpo_norm)",
            evidence=self.extremes.evidence,
        )

    def metrics(self) -> dict[str, float]:
        """All that was measured."""
        logs = np.frombuffer(self.logs, np.float64) if self.logs else np.zeros(0)
        if not logs.size:
            return {}
        longer, shorter = int((logs > DIFFERENT).sum()), int((logs < -DIFFERENT).sum())
        sd = float(logs.std(ddof=1)) if logs.size > 1 else 0.0
        return {
            "mean_ratio": round(float(np.exp(logs.mean())), 3),
            "differ": round((longer + shorter) / logs.size, 4),
            "longer_chosen": round(longer / (longer + shorter), 4) if longer + shorter else 0.5,
            "mean_log": round(float(logs.mean()), 5),
            "effect_size": round(float(logs.mean()) / sd, 3) if sd > 1e-9 else 0.0,
            "p_value": sign_test(longer, shorter),
        }


RULE = Rule(code="PD301", name="length-gap", since="0.1.0", begin=_Check)
