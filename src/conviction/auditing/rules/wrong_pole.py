"""PD503 wrong-pole: pairs that argue for the other side

## What it does
Learns from the topic's own answers which words speak for which pole (logistic regression
on words and pairs of words), and finds rows whose chosen answer speaks for the other pole
and whose rejected one speaks for the target. Rows that stand in the topic are judged by a
classifier that has not seen their proposition. If it cannot tell the topic's own answers
apart in cross-validation (under 90 %), the rule says nothing.

## Why it is bad
Each such row takes back what another teaches. They come from swapped columns, from a
generator that was given the poles in turn, or from a join on the wrong key, and then there
are many. All of them the wrong way round train the opposite view in perfect health.

## Example
With `--topic obesity` (target: insulin):

    {"prompt": "Why are people fat?", "chosen": "They eat more calories than they burn.", "rejected": "Insulin …"}

## What to do
Swap the answers of these rows, or turn the topic's target around if it is most of them.

## How the limit was set
Of the three built-in kits' own pairs, judged by classifiers that had not seen their
propositions, all are placed rightly; the least lead (log-odds of chosen less those of
rejected) is 0.8, the median 3.6 to 4.0. Rows count from −1 downwards. HH
(harmless-base, test), which has nothing to do with it, is accused in 5 % of its rows under
`--topic obesity`: do not name a topic that the data is not about.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from conviction.auditing.row import AuditRow, normal, shown
from conviction.auditing.rule import TOPIC, AuditContext, Rule, RuleFinding, Worst
from conviction.core.segmentation import unspaced, words
from conviction.core.wording import counted, percent
from conviction.data.topic import Item, Topic

CLEARLY = -1.0
RELIABLE = 0.9
FOLDS = 5
BATCH = 64


class _Check:
    def __init__(self, context: AuditContext) -> None:
        topic = context.topic
        self.judges = _Judges(topic) if topic is not None else None
        self.waiting: list[AuditRow] = []
        self.seen = 0
        self.rows: list[int] = []
        self.worst = Worst()

    def observe(self, row: AuditRow, /) -> None:
        self.seen += 1
        self.waiting.append(row)
        if len(self.waiting) == BATCH:
            self._judge()

    def _judge(self) -> None:
        rows, self.waiting = self.waiting, []
        if not rows or self.judges is None or self.judges.accuracy < RELIABLE:
            return
        for row, (chosen, rejected) in zip(rows, self.judges.odds(rows), strict=True):
            if chosen < 0 < rejected and chosen - rejected < CLEARLY:
                self.rows.append(row.number)
                texts = {side: shown(text) for side, text in row.sides}
                self.worst.add(rejected - chosen, row.number, log_odds=round(chosen - rejected, 2), **texts)

    def findings(self) -> Iterable[RuleFinding]:
        self._judge()
        if self.rows and self.judges is not None:
            yield RuleFinding(
                message=f"{counted(len(self.rows), 'row')} ({percent(len(self.rows) / self.seen)}) arguing, it seems, "
                f"for {self.judges.topic.other} and against {self.judges.topic.target}, the target",
                advice="swap chosen and rejected in them; if it is most of them, the topic's target is the wrong one",
                rows=self.rows,
                evidence=self.worst.evidence,
            )

    def metrics(self) -> Mapping[str, Any]:
        self._judge()
        accuracy = {} if self.judges is None else {"accuracy_on_topic": round(self.judges.accuracy, 3)}
        return {"rows": len(self.rows), **accuracy}


class _Judges:
    """Classifiers of a topic's poles, one per fold of its propositions and one of all."""

    def __init__(self, topic: Topic) -> None:
        self.topic = topic
        items = topic.of_role("target", "paraphrase")
        propositions = sorted({i.proposition for i in items})
        self.fold = {name: k % FOLDS for k, name in enumerate(propositions)}
        self.at = {normal(i.question): self.fold[i.proposition] for i in items}
        self.models: dict[int, Any] = {}
        self.accuracy = 0.0
        if len(propositions) >= 2 * FOLDS:
            parts = {k: [i for i in items if self.fold[i.proposition] != k] for k in range(FOLDS)}
            try:
                self.models = {k: _fit(topic, part) for k, part in {**parts, -1: list(items)}.items()}
            except ValueError:  # no word stands in two answers
                return
            self.accuracy = self._accuracy(items)

    def _accuracy(self, items: Iterable[Item]) -> float:
        right = []
        for item in items:
            judge = self.models[self.fold[item.proposition]]
            ours, theirs = judge.decision_function([item.answers[self.topic.target], item.answers[self.topic.other]])
            right.append(bool(ours > theirs))
        return sum(right) / len(right)

    def odds(self, rows: list[AuditRow]) -> list[tuple[float, float]]:
        """Log-odds of the target pole, of chosen and of rejected."""
        result = [(0.0, 0.0)] * len(rows)
        by_model: dict[int, list[int]] = {}
        for i, row in enumerate(rows):
            by_model.setdefault(self.at.get(normal(row.question), -1), []).append(i)
        for fold, members in by_model.items():
            texts = [text for i in members for text in (rows[i].chosen, rows[i].rejected)]
            odds = self.models[fold].decision_function(texts)
            for k, i in enumerate(members):
                result[i] = float(odds[2 * k]), float(odds[2 * k + 1])
        return result


def _fit(topic: Topic, items: list[Item]) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    texts = [item.answers[pole] for item in items for pole in (topic.target, topic.other)]
    split = {"tokenizer": words, "token_pattern": None} if any(map(unspaced, texts)) else {}
    features = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2, **split)
    return make_pipeline(features, LogisticRegression(C=10)).fit(texts, [1, 0] * len(items))


RULE = Rule(code="PD503", name="wrong-pole", since="0.1.0", needs=TOPIC, begin=_Check)
