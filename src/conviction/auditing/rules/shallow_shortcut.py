"""PD303 shallow-shortcut: the sides can be told apart without reading

## What it does
Trains a logistic regression on 21 shallow features of an answer (length, punctuation,
capitals, digits, lists, openers, refusals …; no words) to say which answer of a pair is
the chosen one, and tests it on pairs that it has not seen: five-fold cross-validation,
rows with the same prompt in one fold. Reports the share of pairs that it gets right and
the area under the ROC curve (AUC: 0.5 is guessing, 1 is certainty) of telling a pair from
the same pair turned around. Found if the AUC is 0.75 or more and n allows it (lower 95 %
bound of the accuracy over 0.65).

## Why it is bad
What a linear function of 21 counts can see, a model of billions of weights sees in its
first step, and the loss falls to nothing before a word was understood: the sign of it is
an accuracy near 100 % after a tenth of an epoch. Gururangan et al. (arXiv 1803.02324)
showed it for inference data, whose answers betray the label.

## Example
A set in which chosen answers are full sentences and rejected ones are keywords.

## What to do
The message names the features that weigh most, the evidence the pairs that the classifier
is surest of. Match the sides in the former, or leave out the latter. If form is what you
want to teach, set `form_matched: false` in the topic, or ignore this rule.

## How the limit was set
The belief kit: AUC 0.64. HH (harmless-base, test): 0.67. Pairs from TruthfulQA: 0.75, right
at the limit (its first 400 are found, all 813 just not), and it is known for it: a decision
tree reaches 79.6 % on its multiple-choice form without the questions
(turntrout.com/original-truthfulqa-weaknesses). Two faults of the report that this project
began with, planted into the belief kit, and the politeness and brevity kits, which teach
form: 0.99 and over.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conviction.auditing.row import AuditRow
from conviction.auditing.rule import SHOWN, AuditContext, Rule, RuleFinding
from conviction.auditing.surface import Surface
from conviction.core.statistics import win_share
from conviction.core.wording import percent

LIMIT, SURE = 0.75, 0.65
FOLDS = 5
MIN_PROMPTS = 20
MOST = 20_000  # pairs it is trained on; more change the third digit

Floats = NDArray[np.float64]


class _Check:
    def __init__(self, context: AuditContext) -> None:
        self.meant = context.topic is not None and not context.topic.form_matched
        self.features = array("f")
        self.prompts = array("Q")
        self.rows = array("q")
        self.surest: list[tuple[int, float]] = []

    def observe(self, row: AuditRow, /) -> None:
        for side in row.surfaces:
            self.features.extend(map(float, side))
        self.prompts.append(row.prompt_key)
        self.rows.append(row.number)

    def findings(self) -> Iterable[RuleFinding]:
        m = self.numbers
        if self.meant or not m or m["auc"] < LIMIT or m["accuracy_low"] < SURE:
            return
        message = ", ".join(f"{name} ({weight:+.1f})" for name, weight in list(m["weights"].items())[:3])
        yield RuleFinding(
            message=f"a classifier that reads no words picks the chosen answer in {percent(m['accuracy'])} of unseen "
            f"pairs (AUC {m['auc']:.2f}); it goes by {message}",
            advice="match the sides in these features, or filter out the pairs that it is surest of",
            evidence=[{"row": row, "log_odds": odds} for row, odds in self.surest],
        )

    @cached_property
    def numbers(self) -> dict[str, Any]:
        """AUC, accuracy with its lower bound, and the largest weights per standard deviation of the difference."""
        table = np.frombuffer(self.features, np.float32).reshape(-1, 2, len(Surface._fields))
        prompts, rows = np.frombuffer(self.prompts, np.uint64), np.frombuffer(self.rows, np.int64)
        if len(table) > MOST:
            kept = np.sort(np.random.default_rng(0).choice(len(table), MOST, replace=False))
            table, prompts, rows = table[kept], prompts[kept], rows[kept]
        if len(np.unique(prompts)) < MIN_PROMPTS:
            return {}
        logp_margin, weights = cross_validate(np.log1p(table.astype(np.float64)), prompts)
        order = np.argsort(-logp_margin)[:SHOWN]
        self.surest = [(int(rows[i]), round(float(logp_margin[i]), 2)) for i in order]
        return _summary(logp_margin, weights)

    def metrics(self) -> Mapping[str, Any]:
        return self.numbers


def cross_validate(table: Floats, prompts: NDArray[np.uint64]) -> tuple[Floats, Floats]:
    """Log-odds [n] that the chosen answer of a pair is the chosen one, by a model that has not seen its prompt.

    table    [n, 2, features], chosen first
    returns  the log-odds, and the mean weights [features] per standard deviation
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold

    differences = table[:, 0] - table[:, 1]
    scale = np.sqrt((differences**2).mean(axis=0)) + 1e-9
    # a pair and its mirror image are the two classes: no intercept, no side to guess
    logp_margin = np.zeros(len(table))
    weights = []
    for train, test in GroupKFold(FOLDS, shuffle=True, random_state=0).split(differences, groups=prompts):
        x = differences[train] / scale
        model = LogisticRegression(C=0.1, fit_intercept=False, max_iter=500)
        model.fit(np.concatenate([x, -x]), np.repeat([1, 0], len(x)))
        weights.append(model.coef_[0])
        logp_margin[test] = (differences[test] / scale) @ model.coef_[0]
    return logp_margin, np.mean(weights, axis=0)


def _summary(logp_margin: Floats, weights: Floats) -> dict[str, Any]:
    from sklearn.metrics import roc_auc_score

    right = (logp_margin > 0).sum() + (logp_margin == 0).sum() / 2
    mirrored = np.concatenate([logp_margin, -logp_margin])
    return {
        "auc": round(float(roc_auc_score(np.repeat([1, 0], len(logp_margin)), mirrored)), 4),
        "accuracy": round(float(right / len(logp_margin)), 4),
        "accuracy_low": round(win_share(int(right), len(logp_margin)).low, 4),
        "weights": {Surface._fields[i]: round(float(weights[i]), 3) for i in np.argsort(-np.abs(weights))[:5]},
    }


RULE = Rule(code="PD303", name="shallow-shortcut", since="0.1.0", begin=_Check)
