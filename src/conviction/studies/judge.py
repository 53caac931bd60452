"""From two models' measurements to a verdict on the change between them. Pure functions.

Each metric of ``METRICS`` concludes its own properties; here they are corrected for their number, and
add up to a verdict by the metrics' kinds. The verdict is a lattice and no average: what breaks the
model is not made up for by how far it moved.

A metric whose positive control shows nothing on the untouched model is not readable there: what it says of a change is
no failure and no success. It bounds the verdict from above (``CEILINGS``), and what it says is left out of the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

from conviction.core.statistics import ALPHA, holm
from conviction.probing.depth_records import Measurements, Property
from conviction.probing.metric import Kind, Metric
from conviction.probing.metrics import load_metrics
from conviction.probing.paired import Comparison
from conviction.studies.records import DEPTHS, Judgement, Verdict

CEILINGS: dict[Kind, Verdict] = {
    "change": "none",
    "propagation": "surface",
    "firmness": "shallow",
    "consistency": "shallow",
    "damage": "shallow",  # 'deep' asks that no harm was done, and harm that cannot be read was not ruled out
}
"""The deepest verdict that can be read where a metric of the kind cannot."""

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
    read = [(metric, _if_readable(metric, one, before)) for metric in load_metrics() for one in metric.judge(change)]
    judged = _corrected(read)
    ceiling = _ceiling(judged)
    verdict, reason = _verdict(judged, ceiling)
    return Judgement(
        model=after.model,
        verdict=verdict,
        ceiling=ceiling,
        reason=reason,
        properties=tuple(one for _, one in judged),
        placebo=placebo.model if placebo is not None else None,
    )


def _if_readable(metric: Metric, one: Property, before: Measurements) -> Property:
    """The property; 'not readable' where its positive control shows nothing on the untouched model.

    A shift that was shown shows by itself that the metric can move, and stands.
    """
    control = before.control(one.metric)
    if control is None or control.outcome != "not readable" or (metric.kind == "change" and one.outcome == "yes"):
        return one
    text = f"{one.metric} is not readable on this model ({control.text})"
    return one.model_copy(update={"outcome": "not readable", "text": text})


def _corrected(judged: Judged) -> list[tuple[Metric, Property]]:
    """Holm's correction over all tests that are read. Success must survive it; harm need not, or a list would hide it.

    One that is not readable is no test.
    """
    p_values = [one.p_value for _, one in judged if _is_tested(one) and one.p_value is not None]
    adjusted = iter(holm(p_values))
    return [(metric, _with_p_holm(metric, one, next(adjusted)) if _is_tested(one) else one) for metric, one in judged]


def _is_tested(one: Property) -> bool:
    return one.p_value is not None and one.outcome != "not readable"


def _ceiling(judged: Judged) -> Verdict | None:
    """The deepest verdict that the model lets be read; None: every one."""
    unread = [(metric.kind, one) for metric, one in judged if one.outcome == "not readable"]
    lowest = [CEILINGS[kind] for kind, one in unread if ":" not in one.metric or kind == "damage"]
    return min(lowest, key=DEPTHS.index, default=None)


def _with_p_holm(metric: Metric, one: Property, p: float) -> Property:
    failed = metric.kind in ("change", "propagation") and p >= ALPHA
    return one.model_copy(update={"p_holm": p, "outcome": "no" if failed else one.outcome})


def _verdict(judged: Judged, ceiling: Verdict | None) -> tuple[Verdict, str]:
    """The verdict, no deeper than ``ceiling``, and why."""
    verdict, reason = _uncapped([(metric, one) for metric, one in judged if one.outcome != "not readable"])
    unread = [one for _, one in judged if one.outcome == "not readable" and ":" not in one.metric]
    if ceiling is not None and verdict in DEPTHS:
        verdict = min(verdict, ceiling, key=DEPTHS.index)
    return verdict, "; ".join(filter(None, [reason, _texts(unread)]))


def _uncapped(judged: Judged) -> tuple[Verdict, str]:
    damage = [one for metric, one in judged if metric.kind == "damage" and one.outcome == "no"]
    if damage:
        return "broken", _texts(damage)
    whole = [(metric, one) for metric, one in judged if ":" not in one.metric]
    if not any(metric.kind == "change" for metric, _ in whole):
        return "none", ""
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
        return "shallow", f"{_texts(spread, moved)}; but {_texts(lacking)}"
    return "deep", _texts([*spread, *firm], moved)


def _why_none(metric: Metric, one: Property) -> str:
    if one.p_holm is None:
        return one.text
    away = "away from it" if (one.value or 0.0) < 0 else metric.least
    why = "which chance explains" if one.p_holm >= ALPHA else away
    return f"{one.text}: {why} (p = {one.p_holm:.2g} after correction)"


def _texts(properties: Sequence[Property], *before: str) -> str:
    return "; ".join([*before, *(one.text for one in properties)])
