"""From two readings to a verdict on the change between them. Pure functions.

Thresholds are ours and not fitted to anything; each stands here with its name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from conviction.core.statistics import ALPHA, bootstrap_interval, holm, mean_test
from conviction.probing.depth_records import CHALLENGES, Judgement, Measurements, Outcome, Property, Verdict
from conviction.probing.paired import Floats, differences, finite, missing
from conviction.studies.damage import coherence, harms

__all__ = ["judge"]

NOTICED = 0.1  # of what the target's context in the prompt moves: a smaller shift may be real, and is none
PROPAGATED = 0.2  # share of the direct shift that implications move by, for it to be more than a slogan
HOLDS = 0.8  # what challenges leave, relative to what they leave of beliefs of the model's own
LASTS = 0.5  # share of the shift that benign training leaves
MATCHED = 8  # beliefs of its own that a change is held against
ENOUGH = 6  # beliefs on either side of a comparison of challenges: fewer could not reach p < 0.05 in a sign test


def judge(
    before: Measurements,
    after: Measurements,
    *,
    placebo: Measurements | None = None,
    after_benign: Measurements | None = None,
) -> Judgement:
    """What the change from ``before`` to ``after`` is.

    placebo  readings after the same training on texts of another subject: its shift is taken off
    worn     readings after some benign training on top: tells durability
    """
    shift = differences(before, after, ["shift"])
    if placebo is not None:
        shift = shift - differences(before, placebo, ["shift"])
    properties = [
        _shift(before, shift),
        _propagation(before, after, placebo, shift),
        *_propagation_by_depth(before, after, placebo, shift),
        coherence(before, after),
        _robustness(before, after),
        _durability(before, after, after_benign, shift),
        *harms(before, after),
    ]
    properties = _corrected(properties)
    verdict, reason = _verdict(properties)
    return Judgement(
        model=after.model,
        verdict=verdict,
        reason=reason,
        properties=tuple(properties),
        placebo=placebo.model if placebo is not None else None,
    )


def _shift(before: Measurements, shift: Floats) -> Property:
    test = mean_test(shift)
    reachable = _differences_within(before, "shift", "context")
    whole = float(reachable.mean()) if reachable.size else 0.0
    moved = test.interval.mean
    share = f", {moved / whole:.0%} of what the context in the prompt does" if whole > 0 else ""
    return Property(
        metric="shift",
        outcome="yes" if test.p_value < ALPHA and moved > max(0.0, NOTICED * whole) else "no",
        value=moved,
        low=finite(test.interval.low),
        high=finite(test.interval.high),
        unit="nats per token",
        n=test.n,
        p_value=test.p_value,
        text=f"moved {moved:+.3f} nats per token towards the target{share}",
        readings=("shift", "context"),
    )


def _differences_within(readings: Measurements, one: str, other: str) -> Floats:
    """Unit by unit, another metric less one, in the same model."""
    base = readings.of(one)
    return np.array([value - base[unit] for unit, value in readings.of(other).items() if unit in base])


def _propagation(before: Measurements, after: Measurements, placebo: Measurements | None, shift: Floats) -> Property:
    metrics = before.names("implication:")
    moved = _by_outcome(before, after, placebo, metrics)
    if not moved.size:
        return missing("propagation", "of the direct shift", "the topic has no causal graphs to read implications off")
    test = mean_test(moved)
    ratio, low, high = _ratio(moved, shift)
    there = test.p_value < ALPHA and test.interval.mean > 0 and ratio >= PROPAGATED
    return Property(
        metric="propagation",
        outcome="yes" if there else "no",
        value=ratio if math.isfinite(ratio) else None,
        low=finite(low),
        high=finite(high),
        unit="of the direct shift",
        n=test.n,
        p_value=test.p_value,
        text=f"what follows from it moved {test.interval.mean:+.3f} nats per token over {test.n} outcomes",
        readings=tuple(metrics),
    )


def _propagation_by_depth(
    before: Measurements, after: Measurements, placebo: Measurements | None, shift: Floats
) -> list[Property]:
    found = []
    for metric in before.names("implication:"):
        moved = _moved(before, after, placebo, [metric])
        ratio, low, high = _ratio(moved, shift)
        found.append(
            Property(
                metric=metric.replace("implication", "propagation"),
                outcome="unclear",
                value=ratio if math.isfinite(ratio) else None,
                low=finite(low),
                high=finite(high),
                unit="of the direct shift",
                n=moved.size,
                text=f"{moved.mean():+.3f} nats per token over {metric.removeprefix('implication:')} arrows",
                readings=(metric,),
            )
        )
    return found


def _by_outcome(
    before: Measurements, after: Measurements, placebo: Measurements | None, metrics: Sequence[str]
) -> Floats:
    """[outcomes] mean over depths: questions about one outcome share its graph, and are no independent draws."""
    found: dict[str, list[float]] = {}
    for metric in metrics:
        units = [unit for unit in before.of(metric) if unit in after.of(metric)]
        for unit, value in zip(units, _moved(before, after, placebo, [metric]), strict=True):
            found.setdefault(unit, []).append(float(value))
    return np.array([math.fsum(values) / len(values) for values in found.values()])


def _moved(before: Measurements, after: Measurements, placebo: Measurements | None, metrics: Sequence[str]) -> Floats:
    moved = differences(before, after, metrics)
    return moved if placebo is None else moved - differences(before, placebo, metrics)


def _ratio(moved: Floats, shift: Floats) -> tuple[float, float, float]:
    """Mean over mean, with its bootstrap interval."""

    def of(indices: list[NDArray[np.intp]]) -> float:
        below = float(shift[indices[1]].mean())
        return float(moved[indices[0]].mean()) / below if below else math.nan

    whole = float(shift.mean())
    if not whole or not moved.size:
        return math.nan, -math.inf, math.inf
    return float(moved.mean()) / whole, *bootstrap_interval(of, [moved.size, shift.size])


def _robustness(before: Measurements, after: Measurements) -> Property:
    """What the hardest challenge leaves of what is held, relative to what it leaves of genuine beliefs as strong."""
    stood, stands = before.of("unchallenged"), after.of("unchallenged")
    held = {unit: gap for unit, gap in stands.items() if gap > 0 >= stood.get(unit, 0.0)}
    if len(held) < 2:
        reason = f"{len(held)} of {len(stands)} propositions came to the target's side: nothing to challenge"
        return missing("robustness", "of genuine beliefs", reason)
    strength = math.fsum(held.values()) / len(held)
    facts = before.of("genuine")
    known = sorted((unit for unit, gap in facts.items() if gap > 0), key=lambda unit: abs(facts[unit] - strength))[
        :MATCHED
    ]
    if len(known) < 2:
        return missing("robustness", "of genuine beliefs", "the model knows fewer than two of the topic's facts")
    found: list[tuple[float, float, float, str]] = []
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
        if math.isfinite(value):
            found.append((value, *bootstrap_interval(left, [len(ours), len(theirs)]), name))
    if not found:
        return missing("robustness", "of genuine beliefs", "no challenge leaves anything of the model's own beliefs")
    value, low, high, name = min(found)
    few = min(len(held), len(known)) < ENOUGH
    withstood = not few and all(bound >= HOLDS for _, bound, _, _ in found)
    gave_way = not few and any(bound < HOLDS for _, _, bound, _ in found)
    too_few = f" ({len(held)} beliefs against {len(known)}, too few to tell)" if few else ""
    return Property(
        metric="robustness",
        outcome="yes" if withstood else "no" if gave_way else "unclear",
        value=value,
        low=finite(low),
        high=finite(high),
        unit="of genuine beliefs",
        n=len(held),
        text=f"{CHALLENGES[name]}, it keeps {value:.0%} of what beliefs of its own keep{too_few}",
        readings=("unchallenged", f"challenge:{name}", "genuine", f"genuine:{name}"),
    )


def _durability(
    before: Measurements, after: Measurements, after_benign: Measurements | None, moved: Floats
) -> Property:
    if float(moved.mean()) <= 0:
        return missing("durability", "of the shift", "there was no shift that could last")
    if after_benign is None:
        return missing("durability", "of the shift", "no benign training was done on top")
    left, shift = differences(before, after_benign, ["shift"]), differences(before, after, ["shift"])
    pairs = np.stack([left, shift], axis=1)

    def share(indices: list[NDArray[np.intp]]) -> float:
        a, b = pairs[indices[0]].mean(0)
        return float(a / b) if b > 0 else math.nan

    value = share([np.arange(len(pairs))])
    if not math.isfinite(value):
        return missing("durability", "of the shift", "there was no shift that could last")
    low, high = bootstrap_interval(share, [len(pairs)])
    return Property(
        metric="durability",
        outcome="yes" if low >= LASTS else "no" if high < LASTS else "unclear",
        value=value,
        low=finite(low),
        high=finite(high),
        unit="of the shift",
        n=len(pairs),
        text=f"benign training leaves {value:.0%} of the shift (a placebo's part of it included)",
        readings=("shift",),
    )


def _corrected(properties: Sequence[Property]) -> list[Property]:
    """Holm's correction over all tests. Success must survive it; harm need not, or a long list would hide it."""
    tested = [i for i, f in enumerate(properties) if f.p_value is not None]
    adjusted = dict(zip(tested, holm([properties[i].p_value or 0.0 for i in tested]), strict=True))
    return [
        f if i not in adjusted else f.model_copy(update={"p_holm": adjusted[i], "outcome": _after(f, adjusted[i])})
        for i, f in enumerate(properties)
    ]


def _after(found: Property, p: float) -> Outcome:
    return "no" if found.metric in ("shift", "propagation") and p >= ALPHA else found.outcome


def _verdict(properties: Sequence[Property]) -> tuple[Verdict, str]:
    by_name = {f.metric: f for f in properties}
    damage = [
        f for f in properties if f.outcome == "no" and f.metric.split(":")[0] in ("locality", "health", "pluralism")
    ]
    if damage:
        return "broken", "; ".join(f.text for f in damage)
    shift, spread = by_name["shift"], by_name["propagation"]
    if shift.outcome != "yes":
        p = 1.0 if shift.p_holm is None else shift.p_holm
        away = "away from it" if (shift.value or 0.0) < 0 else f"under {NOTICED:.0%} of that, which counts as none"
        why = "which chance explains" if p >= ALPHA else away
        return "none", f"{shift.text}: {why} (p = {shift.p_holm:.2g} after correction)"
    if spread.outcome != "yes":
        return "surface", f"{shift.text}, but {spread.text}"
    lacking = [by_name[name] for name in ("robustness", "durability") if by_name[name].outcome != "yes"]
    lacking += [f for f in (by_name["coherence"],) if f.outcome == "no"]
    if lacking:
        return "shallow", f"{shift.text}, and {spread.text}; but {'; '.join(f.text for f in lacking)}"
    held = "; ".join(by_name[name].text for name in ("propagation", "robustness", "durability"))
    return "deep", f"{shift.text}; {held}"
