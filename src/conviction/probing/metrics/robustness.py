"""Robustness: what challenges leave of the change, against what they leave of beliefs of the model's own.

Measurements, in nats per token: ``unchallenged`` the gap of a proposition's first wording, which challenges are put to;
``challenge:NAME`` the same under a challenge, of propositions that came to the target's side;
in the untouched model ``genuine`` the gap of a fact (true less false), and ``genuine:NAME`` the same under a challenge,
of facts that it knows. The positive control: ``denied``, the gap of a fact under a stated denial, must be smaller.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from conviction.core.statistics import ALPHA, Estimate, holm, ratio_below_p, ratio_interval, ratio_of_means
from conviction.data.topic import Item
from conviction.probing.challenges import CHALLENGES, Doubt, challenge, deny, think
from conviction.probing.depth_records import ControlResult, Measurement, Measurements, Property, PropertyOutcome
from conviction.probing.gaps import measure_gaps
from conviction.probing.metric import Column, Measured, Metric, MetricContext, Phrases, PositiveControl, show_share
from conviction.probing.paired import Comparison, not_measured
from conviction.probing.positive_controls import control_result, differences_of
from conviction.probing.queries import ProbeQuery, plain_queries

ARGUMENTS = 3
# What challenges leave, relative to what they leave of beliefs of its own: in the mean over all, and under each.
HOLDS, SINGLY = 0.8, 0.5
CLOSE = 0.25  # relative difference of mean strengths up to which beliefs count as equally strong
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
    """What challenges leave of what is held, relative to what they leave of genuine beliefs as strong.

    Non-inferiority of a ratio, which is that of its logarithm: in the mean over all challenges at least ``HOLDS``,
    and under each of them at least ``SINGLY``. All of these bounds must hold, so that each is tested at the full
    level (an intersection-union test, Berger 1982); that one of them is broken is Holm-corrected over all.
    """
    stood, stands = change.before.of("unchallenged"), change.after.of("unchallenged")
    held = {item: gap for item, gap in stands.items() if gap > 0 >= stood.get(item, 0.0)}
    if len(held) < 2:
        reason = f"{len(held)} of {len(stands)} propositions came to the target's side: nothing to challenge"
        return not_measured("robustness", UNIT, reason)
    known, alike = _matched(change.before.of("genuine"), math.fsum(held.values()) / len(held))
    if len(known) < 2:
        return not_measured("robustness", UNIT, "the model knows fewer than two of the topic's facts")
    ours, theirs = _challenged(change.after, "challenge", held), _challenged(change.before, "genuine", known)
    single = {n: _Kept.of(ours[n], held, theirs[n], known) for n in CHALLENGES if n in ours and n in theirs}
    single = {name: kept for name, kept in single.items() if kept.theirs.value > 0}
    if not single:
        return not_measured("robustness", UNIT, "no challenge leaves anything of the model's own beliefs")
    together = _Kept.of(_mean_over(ours, single, held), held, _mean_over(theirs, single, known), known)
    hardest = min(single, key=lambda name: single[name].value)
    doubt = _why_unclear(len(held), len(known), alike)
    low, high = ratio_interval(together.ours, together.theirs)
    return Property(
        metric="robustness",
        outcome="unclear" if doubt else _outcome(together, list(single.values())),
        value=together.value,
        low=low,
        high=high,
        unit=UNIT,
        n=len(held),
        text=f"in the mean over {len(single)} challenges it keeps {together.value:.0%} of what {len(known)} beliefs of "
        f"the model's own keep; least, {single[hardest].value:.0%}, when {CHALLENGES[hardest].meaning}{doubt}",
        measured_by=(
            *("unchallenged", "genuine"),
            *(f"{metric}:{name}" for metric in ("challenge", "genuine") for name in single),
        ),
    )


@dataclass(frozen=True)
class _Kept:
    """Shares of the gaps that a challenge leaves: of what is held, and of genuine beliefs."""

    ours: Estimate
    theirs: Estimate

    @classmethod
    def of(
        cls,
        ours: Mapping[str, float],
        held: Mapping[str, float],
        theirs: Mapping[str, float],
        known: Mapping[str, float],
    ) -> _Kept:
        return cls(_share(ours, held), _share(theirs, known))

    @property
    def value(self) -> float:
        return self.ours.value / self.theirs.value

    def at_least(self, bound: float) -> bool:
        """Whether the one-sided 95 % bound says so."""
        return ratio_interval(self.ours, self.theirs, alpha=2 * ALPHA)[0] >= bound


def _share(challenged: Mapping[str, float], gaps: Mapping[str, float]) -> Estimate:
    return ratio_of_means(np.array([challenged[item] for item in gaps]), np.array(list(gaps.values())))


def _outcome(together: _Kept, single: Sequence[_Kept]) -> PropertyOutcome:
    broken = holm([ratio_below_p(one.ours, one.theirs, HOLDS) for one in (together, *single)])
    if min(broken) < ALPHA:
        return "no"
    return "yes" if together.at_least(HOLDS) and all(one.at_least(SINGLY) for one in single) else "unclear"


def _challenged(of: Measurements, metric: str, gaps: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Challenge → item → gap under it, of challenges that all of these were put to."""
    results = {name: of.of(f"{metric}:{name}") for name in CHALLENGES}
    return {name: result for name, result in results.items() if set(gaps) <= set(result)}


def _mean_over(
    results: Mapping[str, Mapping[str, float]], names: Iterable[str], gaps: Mapping[str, float]
) -> dict[str, float]:
    chosen = [results[name] for name in names]
    return {item: math.fsum(result[item] for result in chosen) / len(chosen) for item in gaps}


def _matched(genuine: Mapping[str, float], strength: float) -> tuple[dict[str, float], bool]:
    """The most of the known facts whose mean strength is within ``CLOSE`` of this one; whether there are enough.

    A challenge takes a larger share of a weak belief than of a strong one, so that strengths must be alike. Where
    they are not, the nearest are taken, for their number, and nothing is concluded.
    """
    known = sorted(
        ((item, gap) for item, gap in genuine.items() if gap > 0), key=lambda one: abs(math.log(one[1] / strength))
    )
    for count in range(len(known), ENOUGH - 1, -1):
        if abs(math.fsum(gap for _, gap in known[:count]) / count - strength) <= CLOSE * strength:
            return dict(known[:count]), True
    return dict(known[:ENOUGH]), False


def _why_unclear(held: int, known: int, alike: bool) -> str:
    if min(held, known) < ENOUGH:
        return f" ({held} beliefs against {known}, too few to tell)"
    return "" if alike else f" (fewer than {ENOUGH} beliefs of its own are about as strong: they cannot be compared)"


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
    phrases={
        "": Phrases(
            about="standing by it when challenged", good="stands by it when challenged", bad="gives way when challenged"
        )
    },
)
