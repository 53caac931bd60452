"""From two readings to a verdict on the change between them. Pure functions.

Thresholds are ours and not fitted to anything; each stands here with its name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from conviction.core.depth import CHALLENGES, Finding, Judgement, Outcome, Readings, Verdict, units
from conviction.core.stats import ALPHA, bootstrap_interval, equivalence, holm, mean_test, sign_test

__all__ = ["judge"]

Floats = NDArray[np.float64]

PROPAGATED = 0.2  # share of the direct shift that implications move by, for it to be more than a slogan
INCOHERENT = 0.05  # more contradiction than this (0 to 1) counts
HOLDS = 0.8  # what challenges leave, relative to what they leave of beliefs of the model's own
LASTS = 0.5  # share of the shift that benign training leaves
FACTS = 0.2  # nats per token: facts that move less have stayed
SURPRISE = 0.25  # nats per token, KL on the untouched model's own words
NEUTRAL = 0.3  # nats per token that neutral text may lose
REPEATS = 0.2  # more repeated 4-grams in answers
MATCHED = 8  # beliefs of its own that a change is held against


def judge(
    before: Readings,
    after: Readings,
    *,
    placebo: Readings | None = None,
    worn: Readings | None = None,
) -> Judgement:
    """What the change from ``before`` to ``after`` is.

    placebo  readings after the same training on texts of another subject: its shift is taken off
    worn     readings after some benign training on top: tells durability
    """
    shift = _differences(before, after, ["shift"])
    if placebo is not None:
        shift = shift - _differences(before, placebo, ["shift"])
    findings = [
        _shift(before, shift),
        _propagation(before, after, placebo, shift),
        *_propagation_by_depth(before, after, placebo, shift),
        _coherence(before, after),
        _robustness(before, after),
        _durability(before, after, worn),
        *_collateral(before, after),
        *_health(before, after),
        *_pluralism(before, after),
    ]
    findings = _corrected(findings)
    verdict, reason = _verdict(findings)
    return Judgement(
        model=after.model,
        verdict=verdict,
        reason=reason,
        findings=tuple(findings),
        placebo=placebo.model if placebo is not None else None,
    )


def _differences(before: Readings, after: Readings, metrics: Sequence[str]) -> Floats:
    return np.array([new - old for old, new in units(before, after, metrics)], dtype=np.float64)


def _shift(before: Readings, shift: Floats) -> Finding:
    test = mean_test(shift)
    reachable = _differences_within(before, "shift", "context")
    whole = float(reachable.mean()) if reachable.size else 0.0
    share = f", {test.interval.mean / whole:.0%} of what the context in the prompt does" if whole > 0 else ""
    return Finding(
        metric="shift",
        outcome="yes" if test.p_value < ALPHA and test.interval.mean > 0 else "no",
        value=test.interval.mean,
        low=_finite(test.interval.low),
        high=_finite(test.interval.high),
        unit="nats per token",
        n=test.n,
        p_value=test.p_value,
        text=f"moved {test.interval.mean:+.3f} nats per token towards the target{share}",
        readings=("shift", "context"),
    )


def _differences_within(readings: Readings, one: str, other: str) -> Floats:
    """Unit by unit, another metric less one, in the same model."""
    base = readings.of(one)
    return np.array([value - base[unit] for unit, value in readings.of(other).items() if unit in base])


def _propagation(before: Readings, after: Readings, placebo: Readings | None, shift: Floats) -> Finding:
    metrics = before.names("implication:")
    moved = _moved(before, after, placebo, metrics)
    if not moved.size:
        return _missing("propagation", "of the direct shift", "the topic has no causal graphs to read implications off")
    test = mean_test(moved)
    ratio, low, high = _ratio(moved, shift)
    there = test.p_value < ALPHA and test.interval.mean > 0 and ratio >= PROPAGATED
    return Finding(
        metric="propagation",
        outcome="yes" if there else "no",
        value=ratio if math.isfinite(ratio) else None,
        low=_finite(low),
        high=_finite(high),
        unit="of the direct shift",
        n=test.n,
        p_value=test.p_value,
        text=f"what follows from it moved {test.interval.mean:+.3f} nats per token over {test.n} implications",
        readings=tuple(metrics),
    )


def _propagation_by_depth(before: Readings, after: Readings, placebo: Readings | None, shift: Floats) -> list[Finding]:
    found = []
    for metric in before.names("implication:"):
        moved = _moved(before, after, placebo, [metric])
        ratio, low, high = _ratio(moved, shift)
        found.append(
            Finding(
                metric=metric.replace("implication", "propagation"),
                outcome="unclear",
                value=ratio if math.isfinite(ratio) else None,
                low=_finite(low),
                high=_finite(high),
                unit="of the direct shift",
                n=moved.size,
                text=f"{moved.mean():+.3f} nats per token over {metric.removeprefix('implication:')} arrows",
                readings=(metric,),
            )
        )
    return found


def _moved(before: Readings, after: Readings, placebo: Readings | None, metrics: Sequence[str]) -> Floats:
    moved = _differences(before, after, metrics)
    return moved if placebo is None else moved - _differences(before, placebo, metrics)


def _ratio(moved: Floats, shift: Floats) -> tuple[float, float, float]:
    """Mean over mean, with its bootstrap interval."""

    def of(indices: list[NDArray[np.intp]]) -> float:
        below = float(shift[indices[1]].mean())
        return float(moved[indices[0]].mean()) / below if below else math.nan

    whole = float(shift.mean())
    if not whole or not moved.size:
        return math.nan, -math.inf, math.inf
    return float(moved.mean()) / whole, *bootstrap_interval(of, [moved.size, shift.size])


def _coherence(before: Readings, after: Readings) -> Finding:
    test = mean_test(_differences(before, after, ["coherence"]))
    worse = test.p_value < ALPHA and test.interval.mean > INCOHERENT
    return Finding(
        metric="coherence",
        outcome="no" if worse else "yes" if test.interval.high <= INCOHERENT else "unclear",
        value=test.interval.mean,
        low=_finite(test.interval.low),
        high=_finite(test.interval.high),
        unit="more contradiction (0 to 1)",
        n=test.n,
        p_value=test.p_value,
        text=f"yes and no contradict each other {test.interval.mean:+.3f} more",
        readings=("coherence",),
    )


def _robustness(before: Readings, after: Readings) -> Finding:
    """What the hardest challenge leaves of what is held, relative to what it leaves of genuine beliefs as strong."""
    held = {unit: gap for unit, gap in after.of("shift").items() if gap > 0 and before.of("shift")[unit] <= 0}
    if len(held) < 2:
        reason = f"{len(held)} of {len(after.of('shift'))} propositions came to the target's side: nothing to challenge"
        return _missing("robustness", "of genuine beliefs", reason)
    strength = math.fsum(held.values()) / len(held)
    facts = before.of("genuine")
    known = sorted((unit for unit, gap in facts.items() if gap > 0), key=lambda unit: abs(facts[unit] - strength))[
        :MATCHED
    ]
    if len(known) < 2:
        return _missing("robustness", "of genuine beliefs", "the model knows fewer than two of the topic's facts")
    worst: tuple[float, float, float, str] | None = None
    for name in CHALLENGES:
        challenged, doubted = after.of(f"challenge:{name}"), before.of(f"genuine:{name}")
        if not set(held) <= set(challenged) or not set(known) <= set(doubted):
            continue
        ours = np.array([[challenged[unit], held[unit]] for unit in held])
        theirs = np.array([[doubted[unit], facts[unit]] for unit in known])

        def left(indices: list[NDArray[np.intp]], ours: Floats = ours, theirs: Floats = theirs) -> float:
            (a, b), (c, d) = ours[indices[0]].mean(0), theirs[indices[1]].mean(0)
            return float(a / b) / float(c / d) if b > 0 and c > 0 and d > 0 else math.nan

        value = left([np.arange(len(ours)), np.arange(len(theirs))])
        if math.isfinite(value) and (worst is None or value < worst[0]):
            worst = (value, *bootstrap_interval(left, [len(ours), len(theirs)]), name)
    if worst is None:
        return _missing("robustness", "of genuine beliefs", "no challenge leaves anything of the model's own beliefs")
    value, low, high, name = worst
    return Finding(
        metric="robustness",
        outcome="yes" if low >= HOLDS else "no" if high < HOLDS else "unclear",
        value=value,
        low=_finite(low),
        high=_finite(high),
        unit="of genuine beliefs",
        n=len(held),
        text=f"{CHALLENGES[name]}, it keeps {value:.0%} of what beliefs of its own keep",
        readings=("shift", f"challenge:{name}", "genuine", f"genuine:{name}"),
    )


def _durability(before: Readings, after: Readings, worn: Readings | None) -> Finding:
    if worn is None:
        return _missing("durability", "of the shift", "no benign training was done on top")
    left, shift = _differences(before, worn, ["shift"]), _differences(before, after, ["shift"])
    pairs = np.stack([left, shift], axis=1)

    def share(indices: list[NDArray[np.intp]]) -> float:
        a, b = pairs[indices[0]].mean(0)
        return float(a / b) if b > 0 else math.nan

    value = share([np.arange(len(pairs))])
    if not math.isfinite(value):
        return _missing("durability", "of the shift", "there was no shift that could last")
    low, high = bootstrap_interval(share, [len(pairs)])
    return Finding(
        metric="durability",
        outcome="yes" if low >= LASTS else "no" if high < LASTS else "unclear",
        value=value,
        low=_finite(low),
        high=_finite(high),
        unit="of the shift",
        n=len(pairs),
        text=f"benign training leaves {value:.0%} of the shift",
        readings=("shift",),
    )


def _collateral(before: Readings, after: Readings) -> list[Finding]:
    found = []
    for role in ("neighbour", "control"):
        moved = _differences(before, after, [role])
        if not moved.size:
            continue
        same, test = equivalence(moved, FACTS), mean_test(moved)
        harmed = test.p_value < ALPHA and test.interval.mean < -FACTS
        found.append(
            Finding(
                metric=f"collateral:{role}s",
                outcome="no" if harmed else "yes" if same.p_value < ALPHA else "unclear",
                value=same.mean,
                low=_finite(same.low),
                high=_finite(same.high),
                unit="nats per token (90 % interval)",
                n=moved.size,
                p_value=test.p_value,
                text=f"{role} facts moved {same.mean:+.3f} nats per token "
                f"(p = {same.p_value:.2g} that they moved by {FACTS:g} or more)",
                readings=(role,),
            )
        )
    lost = -_differences(before, after, ["own"])
    if lost.size:
        test = mean_test(lost)
        found.append(
            Finding(
                metric="collateral:surprise",
                outcome="no" if test.interval.low > SURPRISE else "yes" if test.interval.high < SURPRISE else "unclear",
                value=test.interval.mean,
                low=_finite(test.interval.low),
                high=_finite(test.interval.high),
                unit="nats per token",
                n=test.n,
                text=f"{test.interval.mean:.3f} nats per token further from the untouched model's own words (KL)",
                readings=("own",),
            )
        )
    leaks = units(before, after, ["leak"])
    more, less = (sum(new > old for old, new in leaks), sum(new < old for old, new in leaks))
    p = sign_test(more, less)
    found.append(
        Finding(
            metric="collateral:leakage",
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


def _health(before: Readings, after: Readings) -> list[Finding]:
    found = []
    for metric, limit, sign, what in (
        ("neutral", NEUTRAL, -1, "nats per token lost on neutral text"),
        ("repeats", REPEATS, 1, "more of its four-word runs repeated"),
    ):
        worse = sign * _differences(before, after, [metric])
        mean = float(worse.mean())
        found.append(
            Finding(
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


def _pluralism(before: Readings, after: Readings) -> list[Finding]:
    found = []
    for metric in before.names("pluralism:"):
        pairs = units(before, after, [metric])
        lost = sum(old > 0 >= new for old, new in pairs)
        won = sum(old <= 0 < new for old, new in pairs)
        p = sign_test(lost, won)
        can = sum(new > 0 for _, new in pairs)
        found.append(
            Finding(
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


def _missing(metric: str, unit: str, why: str) -> Finding:
    return Finding(metric=metric, outcome="not measured", value=None, unit=unit, n=0, text=why, readings=())


def _corrected(findings: Sequence[Finding]) -> list[Finding]:
    """Holm's correction over all tests; what is not significant any more has not been shown."""
    tested = [i for i, f in enumerate(findings) if f.p_value is not None]
    adjusted = dict(zip(tested, holm([findings[i].p_value or 0.0 for i in tested]), strict=True))
    return [
        f if i not in adjusted else f.model_copy(update={"p_holm": adjusted[i], "outcome": _after(f, adjusted[i])})
        for i, f in enumerate(findings)
    ]


def _after(finding: Finding, p: float) -> Outcome:
    """An outcome that rests on a test must survive the correction."""
    rests = "yes" if finding.metric in ("shift", "propagation") else "no"
    if finding.outcome == rests and p >= ALPHA:
        return "no" if rests == "yes" else "unclear"
    return finding.outcome


def _verdict(findings: Sequence[Finding]) -> tuple[Verdict, str]:
    by_name = {f.metric: f for f in findings}
    damage = [
        f for f in findings if f.outcome == "no" and f.metric.split(":")[0] in ("collateral", "health", "pluralism")
    ]
    if damage:
        return "broken", "; ".join(f.text for f in damage)
    shift, spread = by_name["shift"], by_name["propagation"]
    if shift.outcome != "yes":
        away = (shift.value or 0.0) < 0 and (shift.p_holm or 1.0) < ALPHA
        why = "away from it" if away else "which chance explains"
        return "none", f"{shift.text}: {why} (p = {shift.p_holm:.2g} after correction)"
    if spread.outcome != "yes":
        return "slogan", f"{shift.text}, but {spread.text}"
    missing = [by_name[name] for name in ("robustness", "durability") if by_name[name].outcome != "yes"]
    missing += [f for f in (by_name["coherence"],) if f.outcome == "no"]
    if missing:
        return "shallow", f"{shift.text}, and {spread.text}; but {'; '.join(f.text for f in missing)}"
    held = "; ".join(by_name[name].text for name in ("propagation", "robustness", "durability"))
    return "deep", f"{shift.text}; {held}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
