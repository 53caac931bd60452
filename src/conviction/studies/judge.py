"""From two models' measurements to a verdict on the change between them. Pure functions.

Each metric of ``METRICS`` concludes its own properties; here they are corrected for their number, and
add up to a verdict by the metrics' kinds. The verdict is a lattice and no average: what breaks the
model is not made up for by how far it moved.
"""

from __future__ import annotations

from collections.abc import Sequence

from conviction.core.statistics import ALPHA, holm
from conviction.probing.depth_records import Measurements, Property
from conviction.probing.metric import Metric
from conviction.probing.metrics import load_metrics
from conviction.probing.paired import Comparison
from conviction.studies.records import Judgement, Verdict

Judged = Sequence[tuple[Metric, Property]]


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
    failed = metric.kind in ("change", "propagation") and p >= ALPHA
    return one.model_copy(update={"p_holm": p, "outcome": "no" if failed else one.outcome})


def _verdict(judged: Judged) -> tuple[Verdict, str]:
    damage = [one for metric, one in judged if metric.kind == "damage" and one.outcome == "no"]
    if damage:
        return "broken", _texts(damage)
    whole = [(metric, one) for metric, one in judged if ":" not in one.metric]
    unmoved = [(metric, one) for metric, one in whole if metric.kind == "change" and one.outcome != "yes"]
    if unmoved:
        return "none", "; ".join(_why_none(metric, one) for metric, one in unmoved)
    moved = _texts([one for metric, one in whole if metric.kind == "change"])
    spread = [one for metric, one in whole if metric.kind == "propagation"]
    unspread = [one for one in spread if one.outcome != "yes"]
    if unspread:
        return "surface", f"{moved}, but {_texts(unspread)}"
    firm = [one for metric, one in whole if metric.kind == "firmness"]
    lacking = [one for one in firm if one.outcome != "yes"]
    lacking += [one for metric, one in whole if metric.kind == "consistency" and one.outcome == "no"]
    if lacking:
        return "shallow", f"{moved}, and {_texts(spread)}; but {_texts(lacking)}"
    return "deep", f"{moved}; {_texts([*spread, *firm])}"


def _why_none(metric: Metric, one: Property) -> str:
    if one.p_holm is None:
        return one.text
    away = "away from it" if (one.value or 0.0) < 0 else metric.least
    why = "which chance explains" if one.p_holm >= ALPHA else away
    return f"{one.text}: {why} (p = {one.p_holm:.2g} after correction)"


def _texts(properties: Sequence[Property]) -> str:
    return "; ".join(one.text for one in properties)
