"""Forced choice: the log-prob of the letter of an answer. Pure functions over scored letters.

A second instrument, which does not depend on how likely the texts are: they
stand in the question, and what is scored is one letter. Small models often
cannot do this and choose by place (arXiv 2309.03882), so it is read only where
a control shows that they can: facts beside the topic, their true and false
answers as options.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from conviction.core.statistics import ALPHA, above_chance, mean_test
from conviction.data.topic import FACT_KEYS, Item, Topic
from conviction.probing.gaps import by_proposition, estimate, gap
from conviction.probing.queries import ORDERS, Scores
from conviction.probing.records import ChoiceControl, ForcedChoice


def measure_choice(topic: Topic, asked: Sequence[Item], scores: Scores) -> ForcedChoice:
    """Which pole's letter is likelier, both orders averaged, nats; and whether the model can choose.

    asked  the items and facts whose choices were scored
    """
    claims = [item for item in asked if not item.is_fact]
    gaps = by_proposition(claims, lambda i: _preference(scores, i, topic.target, topic.other))
    test = mean_test(gaps)
    return ForcedChoice(
        n=test.n,
        chosen={topic.target: int((gaps > 0).sum()), topic.other: int((gaps < 0).sum())},
        gap_nats=estimate(test.interval),
        p_value=test.p_value,
        position_nats=float(np.mean([_first_place(scores, i) for i in claims])),
        control=_control([item for item in asked if item.is_fact], scores),
    )


def _preference(scores: Scores, item: Item, towards: str, away: str) -> float:
    return float(np.mean([gap(scores, order, item, towards, away) for order in ORDERS]))


def _first_place(scores: Scores, item: Item) -> float:
    """Log p(A) - log p(B), whichever answers these are."""
    first, second = item.answers
    ahead = gap(scores, ORDERS[0], item, first, second), gap(scores, ORDERS[1], item, second, first)
    return float(np.mean(ahead))


def _control(facts: Sequence[Item], scores: Scores) -> ChoiceControl | None:
    """True answers chosen, against chance. A tie counts as wrong: a model without a choice passes nothing."""
    if not facts:
        return None
    true, false = FACT_KEYS
    gaps = by_proposition(facts, lambda i: _preference(scores, i, true, false))
    correct = int((gaps > 0).sum())
    p_value = above_chance(correct, len(gaps))
    return ChoiceControl(n=len(gaps), correct=correct, p_value=p_value, passed=p_value < ALPHA)
