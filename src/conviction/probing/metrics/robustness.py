"""Robustness: what challenges leave of the change, against what they leave of beliefs of the model's own.

Measurements, in nats per token: ``unchallenged`` the gap of a proposition's first wording, which challenges are put to;
``challenge:NAME`` the same under a challenge, of propositions that came to the target's side;
in the untouched model ``genuine`` the gap of a fact (true less false), and ``genuine:NAME`` the same under a challenge,
of facts that it knows. The positive control: ``denied``, the gap of a fact under a stated denial, must be smaller.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from conviction.core.statistics import bootstrap_interval
from conviction.data.topic import Item
from conviction.probing.challenges import CHALLENGES, Doubt, challenge, deny, think
from conviction.probing.depth_records import ControlResult, Measurement, Measurements, Property
from conviction.probing.gaps import measure_gaps
from conviction.probing.metric import Column, Measured, Metric, MetricContext, PositiveControl, show_share
from conviction.probing.paired import Comparison, Floats, not_measured
from conviction.probing.positive_controls import control_result, differences_of
from conviction.probing.queries import ProbeQuery, plain_queries

ARGUMENTS = 3
HOLDS = 0.8  # what challenges leave, relative to what they leave of beliefs of the model's own
MATCHED = 8  # beliefs of its own that a change is held against
ENOUGH = 6  # beliefs on either side of a comparison of challenges: fewer could not reach p < 0.05 in a sign test
UNIT = "of genuine beliefs"


def _queries(context: MetricContext) -> list[ProbeQuery]:
    return plain_queries([*context.propositions, *(context.facts if context.base is None else ())])


def _unchallenged(context: MetricContext) -> list[Measurement]:
    target, other = context.topic.target, context.topic.other
    return measure_gaps("unchallenged", "plain", context.propositions, context.scores, target, other)


def _genuine(context: MetricContext) -> list[Measurement]:
    return measure_gaps("genuine", "plain", context.facts, context.scores, "true", "false")


def _doubted(context: MetricContext) -> list[Item]:
    """What is challenged: facts that the untouched model knows; in another, propositions that came over."""
    if context.base is None:
        known = {m.item for m in _genuine(context) if m.value > 0}
        return [fact for fact in context.facts if fact.proposition in known]
    before = context.base.of("unchallenged")
    came_over = {m.item for m in _unchallenged(context) if m.value > 0 >= before.get(m.item, 0.0)}
    return [item for item in context.propositions if item.proposition in came_over]


def _follow_ups(context: MetricContext) -> list[ProbeQuery]:
    """Every challenge to each of them; a fact's other side are false answers to facts."""
    doubted = _doubted(context)
    if not doubted:
        return []
    thoughts = think(context.model, doubted, context.progress("thinking"))
    return [
        query for item, thought in zip(doubted, thoughts, strict=True) for query in _challenge(context, item, thought)
    ]


def _challenge(context: MetricContext, item: Item, thought: str) -> list[ProbeQuery]:
    topic, facts = context.topic, context.facts
    if item.is_fact:
        number = facts.index(item)
        arguments = [facts[(number + k) % len(facts)].answers["false"] for k in range(ARGUMENTS)]
        held, text = "true", " ".join(arguments)
    else:
        others = [i.answers[topic.other] for i in topic.of_role("target") if i.split == "train"]
        arguments = [item.answers[topic.other], *others[: ARGUMENTS - 1]]
        against = topic.poles[topic.other].context
        held, text = topic.target, f"{against} {arguments[0]}" if against else " ".join(arguments)
    return challenge(Doubt(item=item, held=held, other_side=text, arguments=arguments, thought=thought))


def _measure(context: MetricContext) -> Measured:
    untouched = context.base is None
    measured = [*_unchallenged(context), *(_genuine(context) if untouched else ())]
    metric = "genuine" if untouched else "challenge"
    towards, away = ("true", "false") if untouched else (context.topic.target, context.topic.other)
    if doubted := _doubted(context):
        for name in CHALLENGES:
            condition = f"challenge:{name}"
            measured += measure_gaps(f"{metric}:{name}", condition, doubted, context.scores, towards, away)
    return Measured(measured)


def _robustness(change: Comparison) -> Property:
    """What the hardest challenge leaves of what is held, relative to what it leaves of genuine beliefs as strong."""
    stood, stands = change.before.of("unchallenged"), change.after.of("unchallenged")
    held = {item: gap for item, gap in stands.items() if gap > 0 >= stood.get(item, 0.0)}
    if len(held) < 2:
        reason = f"{len(held)} of {len(stands)} propositions came to the target's side: nothing to challenge"
        return not_measured("robustness", UNIT, reason)
    strength = math.fsum(held.values()) / len(held)
    facts = change.before.of("genuine")
    nearest = sorted((item for item, gap in facts.items() if gap > 0), key=lambda item: abs(facts[item] - strength))
    known = {item: facts[item] for item in nearest[:MATCHED]}
    if len(known) < 2:
        return not_measured("robustness", UNIT, "the model knows fewer than two of the topic's facts")
    shares = [
        (*share, name)
        for name in CHALLENGES
        if (share := _kept(held, change.after.of(f"challenge:{name}"), known, change.before.of(f"genuine:{name}")))
    ]
    if not shares:
        return not_measured("robustness", UNIT, "no challenge leaves anything of the model's own beliefs")
    value, low, high, name = min(shares)
    few = min(len(held), len(known)) < ENOUGH
    withstood = not few and all(bound >= HOLDS for _, bound, _, _ in shares)
    gave_way = not few and any(bound < HOLDS for _, _, bound, _ in shares)
    too_few = f" ({len(held)} beliefs against {len(known)}, too few to tell)" if few else ""
    return Property(
        metric="robustness",
        outcome="yes" if withstood else "no" if gave_way else "unclear",
        value=value,
        low=low,
        high=high,
        unit=UNIT,
        n=len(held),
        text=f"{CHALLENGES[name].meaning}, it keeps {value:.0%} of what beliefs of its own keep{too_few}",
        measured_by=("unchallenged", f"challenge:{name}", "genuine", f"genuine:{name}"),
    )


def _kept(
    held: Mapping[str, float], challenged: Mapping[str, float], known: Mapping[str, float], doubted: Mapping[str, float]
) -> tuple[float, float, float] | None:
    """The share of held gaps that a challenge leaves, over that of known facts, with its bootstrap interval.

    None where not all were put to the challenge, or it leaves nothing of either.
    """
    if not set(held) <= set(challenged) or not set(known) <= set(doubted):
        return None
    ours: Floats = np.array([[challenged[item], gap] for item, gap in held.items()])
    theirs: Floats = np.array([[doubted[item], gap] for item, gap in known.items()])

    def share(indices: list[NDArray[np.intp]]) -> float:
        (a, b), (c, d) = ours[indices[0]].mean(0), theirs[indices[1]].mean(0)
        return float(a / b) / float(c / d) if b > 0 and c > 0 and d > 0 else math.nan

    value = share([np.arange(len(ours)), np.arange(len(theirs))])
    return (value, *bootstrap_interval(share, [len(ours), len(theirs)])) if math.isfinite(value) else None


def _measure_denied(context: MetricContext) -> Measured:
    return Measured(measure_gaps("denied", "denied", context.facts, context.scores, "true", "false"))


def _control(before: Measurements) -> list[ControlResult]:
    effects = differences_of(before, "genuine", "denied")
    return [control_result("robustness", effects, "a stated denial takes of facts", ("genuine", "denied"))]


METRIC = Metric(
    name="robustness",
    kind="firmness",
    queries=_queries,
    follow_ups=_follow_ups,
    measure=_measure,
    judge=lambda change: [_robustness(change)],
    control=PositiveControl(judge=_control, queries=lambda context: deny(context.facts), measure=_measure_denied),
    column=Column("robustness", "what challenges leave, against beliefs of its own", show_share),
)
