"""From two models' measurements to a verdict on the change between them. Pure functions.

Each metric of ``METRICS`` concludes its own properties; here they are corrected for their number, and
add up to a verdict by the metrics' kinds. The verdict is a lattice and no average: what breaks the
model is not made up for by how far it moved.
"""

from __future__ import annotations

from collections.abc import Sequence

from conviction.core.statistics import ALPHA, holm, sample_size
from conviction.probing.depth_records import Measurements, Property
from conviction.probing.metric import Metric
from conviction.probing.metrics import load_metrics
from conviction.probing.paired import Comparison
from conviction.studies.records import Judgement, Verdict

Judged = Sequence[tuple[Metric, Property]]
SUCCESS = ("change", "propagation")  # kinds whose properties must survive Holm's correction


def judge(
    before: Measurements,
    after: Measurements,
    *,
    placebo: Measurements | None = None,
    after_benign: Measurements | None = None,
) -> Judgement:
    """What the change from ``before`` to ``after`` is.

    placebo       measurements after the same training on texts of another subject: its shift is taken off
    after_benign  measurements after some benign training on top: they tell durability
    """
    change = Comparison(before=before, after=after, placebo=placebo, after_benign=after_benign)
    judged = _corrected([(metric, one) for metric in load_metrics() for one in metric.judge(change)])
    verdict, reason = _verdict(judged)
    return Judgement(
        model=after.model,
        verdict=verdict,
        reason=reason,
        properties=tuple(one for _, one in judged),
        placebo=placebo.model if placebo is not None else None,
    )


def _corrected(judged: Judged) -> list[tuple[Metric, Property]]:
    """Holm's correction over all tests. Success must survive it; harm need not, or a long list would hide it."""
    p_values = [one.p_value for _, one in judged if one.p_value is not None]
    adjusted = iter(holm(p_values))
    return [
        (metric, one if one.p_value is None else _with_p_holm(metric, one, next(adjusted))) for metric, one in judged
    ]


def _with_p_holm(metric: Metric, one: Property, p: float) -> Property:
    """A change that chance may explain was not shown, which does not show that there is none."""
    if metric.kind in SUCCESS and p >= ALPHA and one.outcome == "yes":
        return one.model_copy(update={"p_holm": p, "outcome": "unclear" if metric.kind == "change" else "no"})
    return one.model_copy(update={"p_holm": p})


def correct_over_arms(judgements: Sequence[Judgement]) -> list[Judgement]:
    """The judgements of a study's arms, success corrected over these as well: of many one may shift by chance.

    Each test is in two families, those of its arm and the same test in all arms; the larger of the two corrected
    p-values counts, so that either family has an error rate of 5 %. Verdicts follow.
    """
    judged = [[(m, one) for m in load_metrics() for one in m.own(j.properties)] for j in judgements]
    p_values: dict[str, dict[int, float]] = {}
    for number, arm in enumerate(judged):
        for metric, one in arm:
            if metric.kind in SUCCESS and one.p_value is not None:
                p_values.setdefault(one.metric, {})[number] = one.p_value
    adjusted = {name: dict(zip(ps, holm(list(ps.values())), strict=True)) for name, ps in p_values.items()}
    results = []
    for number, (judgement, arm) in enumerate(zip(judgements, judged, strict=True)):
        corrected = [
            (m, _with_p_holm(m, one, max(one.p_holm or 0.0, adjusted.get(one.metric, {}).get(number, 0.0))))
            if one.p_value is not None
            else (m, one)
            for m, one in arm
        ]
        verdict, reason = _verdict(corrected, arms=len(judgements))
        properties = tuple(one for _, one in corrected)
        results.append(judgement.model_copy(update={"verdict": verdict, "reason": reason, "properties": properties}))
    return results


def _verdict(judged: Judged, *, arms: int = 1) -> tuple[Verdict, str]:
    damage = [one for metric, one in judged if metric.kind == "damage"]
    if harmed := [one for one in damage if one.outcome == "no"]:
        return "broken", _texts(harmed)
    whole = [(metric, one) for metric, one in judged if ":" not in one.metric]
    unmoved = [one for metric, one in whole if metric.kind == "change" and one.outcome != "yes"]
    if unmoved:
        tests = max(arms, sum(one.p_value is not None for _, one in judged))
        none = any(one.outcome == "no" for one in unmoved)
        return "none" if none else "not shown", "; ".join(_why_unmoved(one, tests) for one in unmoved)
    moved = _texts([one for metric, one in whole if metric.kind == "change"])
    spread = [one for metric, one in whole if metric.kind == "propagation"]
    unspread = [one for one in spread if one.outcome != "yes"]
    if unspread:
        return "surface", f"{moved}, but {_texts(unspread)}"
    firm = [one for metric, one in whole if metric.kind == "firmness"]
    lacking = [one for one in firm if one.outcome != "yes"]
    lacking += [one for metric, one in whole if metric.kind == "consistency" and one.outcome == "no"]
    why = [_texts(lacking)] if lacking else []
    if unsure := [one for one in damage if one.outcome != "yes"]:
        why.append(f"it is not shown that nothing was lost ({_texts(unsure)})")
    if why:
        return "shallow", f"{moved}, and {_texts(spread)}; but {'; and '.join(why)}"
    return "deep", f"{moved}; {_texts([*spread, *firm])}"


def _why_unmoved(one: Property, tests: int) -> str:
    """Why a change counts as none, or as not shown; tests: that p-values were corrected for."""
    if one.p_holm is None or one.value is None or one.useful is None:
        return one.text
    smallest = f"the smallest shift that is of use here is {one.useful:.2g}"
    if one.outcome == "no":
        away = ", and away from it" if one.value < 0 else ""
        return f"{one.text}: less than is of use{away} (at most {one.high:+.3f} by the 95 % interval; {smallest})"
    if not one.sd:
        return f"{one.text}: not shown: too few propositions (n = {one.n}; {smallest})"
    needed = sample_size(max(one.value, one.useful) / one.sd, alpha=ALPHA / tests)
    return (
        f"{one.text}: not shown: too few propositions (n = {one.n}; {max(needed, one.n + 1)} would do, "
        f"p = {one.p_holm:.2g} after correction; {smallest})"
    )


def _texts(properties: Sequence[Property]) -> str:
    return "; ".join(one.text for one in properties)
