"""From scored answers to gaps and a summary. Pure functions.

The gap of an item is mean log-prob per token of the target pole's answer less
that of the other's. The PMI gap takes the unconditional log-probs off both
sides first (PMI_DC, Holtzman et al. 2104.08315): the raw gap says which text
the model prefers, the PMI gap what the question adds to it. The conditional gap
takes off what the same texts have under the question of another proposition.
An empty turn is no question, and models answer it in ways of their own; a
question of the same topic differs from the item's own in what it asks alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from conviction.core.statistics import Interval, mean_interval, mean_test, win_share
from conviction.data.topic import Item, Topic
from conviction.probing.depth_records import Measurement
from conviction.probing.queries import Scores, foreign_questions
from conviction.probing.records import ConditionalGap, GapEstimate, ItemRow, Summary, WinRate


def gap(scores: Scores, condition: str, item: Item, towards: str, away: str) -> float:
    """Nats per token in favour of ``towards``."""
    return scores[condition, item.id, towards].logp_mean - scores[condition, item.id, away].logp_mean


def mean(values: Sequence[float]) -> float:
    """Of one value at least, exactly summed."""
    return math.fsum(values) / len(values)


def measure_gaps(
    metric: str,
    condition: str | Callable[[Item], str],
    items: Sequence[Item],
    scores: Scores,
    towards: str,
    away: str,
) -> list[Measurement]:
    """One measurement a proposition: the mean gap of its items, nats per token in favour of ``towards``.

    condition  that all items were asked under, or that of each
    """
    asked = (lambda _: condition) if isinstance(condition, str) else condition
    return [
        Measurement(
            metric=metric,
            item=proposition,
            value=mean([gap(scores, asked(i), i, towards, away) for i in group]),
            samples=tuple(f"{asked(i)}/{i.id}/{side}" for i in group for side in (towards, away)),
        )
        for proposition, group in _propositions(items).items()
    ]


def item_rows(topic: Topic, items: Sequence[Item], scores: Scores, *, noise: float) -> tuple[ItemRow, ...]:
    """The table: one row per item. Gaps within ``noise`` (nats per token) are ties."""
    rows = []
    others = foreign_questions(items)
    for item in items:
        under = f"foreign:{others[item.id].id}" if item.id in others else None
        raw = gap(scores, "plain", item, topic.target, topic.other)
        winner = "tie" if abs(raw) <= noise else (topic.target if raw > 0 else topic.other)
        rows.append(
            ItemRow(
                item=item.id,
                proposition=item.proposition,
                role=item.role,
                split=item.split,
                question=item.question,
                logp_mean={p: scores["plain", item.id, p].logp_mean for p in topic.poles},
                tokens={p: len(scores["plain", item.id, p].logprobs) for p in topic.poles},
                gap_nats=raw,
                pmi_gap_nats=raw - gap(scores, "unconditional", item, topic.target, topic.other),
                # Exact to 1e-9: two equal gaps must not differ by the last bit of a sum, and all on one side.
                conditional_gap_nats=(
                    round(raw - gap(scores, under, item, topic.target, topic.other), 9) if under else None
                ),
                winner=winner,
                samples={p: f"plain/{item.id}/{p}" for p in topic.poles},
                foreign_samples={p: f"{under}/{item.id}/{p}" for p in topic.poles} if under else {},
            )
        )
    return tuple(rows)


def by_proposition(items: Sequence[Item], value: Callable[[Item], float]) -> NDArray[np.float64]:
    """Means of ``value`` over the items of each proposition, in order of first appearance."""
    return np.array([np.mean([value(item) for item in group]) for group in _propositions(items).values()])


def _propositions(items: Sequence[Item]) -> dict[str, list[Item]]:
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(item.proposition, []).append(item)
    return groups


def estimate(interval: Interval) -> GapEstimate:
    """An interval as it is reported; unbounded sides become None."""
    return GapEstimate(mean=interval.mean, low=interval.low, high=interval.high, method=interval.method)


def summarise(topic: Topic, items: Sequence[Item], rows: Sequence[ItemRow], *, noise: float) -> Summary:
    """Statistics over propositions; what they come to, ``verdict.py`` says."""
    row = {r.item: r for r in rows}
    gaps = by_proposition(items, lambda item: row[item.id].gap_nats)
    test = mean_test(gaps)
    pmi = mean_interval(by_proposition(items, lambda item: row[item.id].pmi_gap_nats))
    wins = {
        topic.target: int((gaps > noise).sum()),
        topic.other: int((gaps < -noise).sum()),
        "tie": int((np.abs(gaps) <= noise).sum()),
    }
    leading = topic.target if wins[topic.target] > wins[topic.other] else topic.other
    decided = wins[topic.target] + wins[topic.other]
    rate = None
    if decided:
        share = win_share(wins[leading], decided)
        rate = WinRate(pole=leading, share=share.wins / share.n, low=share.low, high=share.high)
    return Summary(
        n=test.n,
        wins=wins,
        win_rate=rate,
        gap_nats=estimate(test.interval),
        p_value=test.p_value,
        smallest_p=test.smallest_p,
        effect_size=test.effect_size,
        min_detectable_effect=test.min_detectable_effect,
        pmi_gap_nats=pmi.mean,
        pmi_interval=estimate(pmi),
        conditional=_conditional(items, row),
    )


def _conditional(items: Sequence[Item], rows: Mapping[str, ItemRow]) -> ConditionalGap | None:
    """The crossed design over the propositions that have foreign questions."""
    own = {name: row.conditional_gap_nats for name, row in rows.items() if row.conditional_gap_nats is not None}
    crossed = [item for item in items if item.id in own]
    if not crossed:
        return None
    question = mean_test(by_proposition(crossed, lambda item: own[item.id]))
    texts = mean_test(by_proposition(crossed, lambda item: rows[item.id].gap_nats - own[item.id]))
    return ConditionalGap(
        n=question.n,
        gap_nats=estimate(question.interval),
        p_value=question.p_value,
        foreign_gap_nats=estimate(texts.interval),
        foreign_p_value=texts.p_value,
    )
