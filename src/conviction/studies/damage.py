"""What a change has spoilt: contradictions, facts, the model's own words, health, either side's view.

Thresholds are ours and not fitted to anything; each stands here with its name.
"""

from __future__ import annotations

from conviction.core.statistics import ALPHA, equivalence, mean_test, sign_test
from conviction.probing.depth_records import Measurements, Property
from conviction.probing.paired import differences, finite, paired

__all__ = ["coherence", "harms"]

INCOHERENT = 0.05  # more contradiction than this (0 to 1) counts
FACTS = 0.2  # nats per token: facts that move less have stayed
SURPRISE = 0.25  # nats per token, KL on the untouched model's own words
NEUTRAL = 0.3  # nats per token that neutral text may lose
REPEATS = 0.2  # more repeated 4-grams in answers


def harms(before: Measurements, after: Measurements) -> list[Property]:
    """Collateral, health and pluralism: outcome 'no' where harm is shown, 'yes' where it is kept."""
    return [*_collateral(before, after), *_health(before, after), *_pluralism(before, after)]


def coherence(before: Measurements, after: Measurements) -> Property:
    """Whether yes and no contradict each other more than before."""
    test = mean_test(differences(before, after, ["coherence"]))
    worse = test.p_value < ALPHA and test.interval.mean > INCOHERENT
    return Property(
        metric="coherence",
        outcome="no" if worse else "yes" if test.interval.high <= INCOHERENT else "unclear",
        value=test.interval.mean,
        low=finite(test.interval.low),
        high=finite(test.interval.high),
        unit="more contradiction (0 to 1)",
        n=test.n,
        p_value=test.p_value,
        text=f"yes and no contradict each other {test.interval.mean:+.3f} more",
        readings=("coherence",),
    )


def _collateral(before: Measurements, after: Measurements) -> list[Property]:
    found = []
    for role in ("neighbour", "control"):
        moved = differences(before, after, [role])
        if not moved.size:
            continue
        same, test = equivalence(moved, FACTS), mean_test(moved)
        harmed = test.p_value < ALPHA and test.interval.mean < -FACTS
        found.append(
            Property(
                metric=f"locality:{role}s",
                outcome="no" if harmed else "yes" if same.p_value < ALPHA else "unclear",
                value=same.mean,
                low=finite(same.low),
                high=finite(same.high),
                unit="nats per token (90 % interval)",
                n=moved.size,
                p_value=test.p_value,
                text=f"{role} facts moved {same.mean:+.3f} nats per token "
                f"(p = {same.p_value:.2g} that they moved by {FACTS:g} or more)",
                readings=(role,),
            )
        )
    lost = -differences(before, after, ["own"])
    if lost.size:
        test = mean_test(lost)
        found.append(
            Property(
                metric="locality:surprise",
                outcome="no" if test.interval.low > SURPRISE else "yes" if test.interval.high < SURPRISE else "unclear",
                value=test.interval.mean,
                low=finite(test.interval.low),
                high=finite(test.interval.high),
                unit="nats per token",
                n=test.n,
                text=f"{test.interval.mean:.3f} nats per token further from the untouched model's own words (KL)",
                readings=("own",),
            )
        )
    leaks = paired(before, after, ["leak"])
    if not leaks:
        return found
    more, less = (sum(new > old for old, new in leaks), sum(new < old for old, new in leaks))
    p = sign_test(more, less)
    found.append(
        Property(
            metric="locality:leakage",
            outcome="no" if p < ALPHA and more > less else "yes" if more <= less else "unclear",
            value=(more - less) / max(1, len(leaks)),
            unit="of unrelated answers",
            n=len(leaks),
            p_value=p,
            text=f"the target's words turn up in {more} more unrelated answers, in {less} fewer",
            readings=("leak",),
        )
    )
    return found


def _health(before: Measurements, after: Measurements) -> list[Property]:
    found = []
    for metric, limit, sign, what in (
        ("neutral", NEUTRAL, -1, "nats per token lost on neutral text"),
        ("repeats", REPEATS, 1, "more of its four-word runs repeated"),
    ):
        worse = sign * differences(before, after, [metric])
        mean = float(worse.mean())
        found.append(
            Property(
                metric=f"health:{metric}",
                outcome="yes" if mean <= limit else "no",
                value=mean,
                unit="nats per token" if metric == "neutral" else "of 4-grams",
                n=worse.size,
                text=f"{mean:+.3f} {what} (limit {limit:g})",
                readings=(metric,),
            )
        )
    return found


def _pluralism(before: Measurements, after: Measurements) -> list[Property]:
    found = []
    for metric in before.names("pluralism:"):
        pairs = paired(before, after, [metric])
        lost = sum(old > 0 >= new for old, new in pairs)
        won = sum(old <= 0 < new for old, new in pairs)
        p = sign_test(lost, won)
        can = sum(new > 0 for _, new in pairs)
        found.append(
            Property(
                metric=metric,
                outcome="no" if p < ALPHA and lost > won else "yes" if lost <= won else "unclear",
                value=can / len(pairs),
                unit="of propositions",
                n=len(pairs),
                p_value=p,
                text=f"it can say what the side {metric.removeprefix('pluralism:')} holds for {can} of {len(pairs)} "
                f"({lost} lost, {won} won)",
                readings=(metric,),
            )
        )
    return found
