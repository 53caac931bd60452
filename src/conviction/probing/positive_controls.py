"""Positive controls: can a metric be read on this model at all? Pure functions.

A metric is put to the untouched model together with something that must move it (the target's context, a stated
denial). One that this does not move beyond chance is not readable on the model: what it says of a change is then
neither success nor failure. Where several forms of question are tried, the p-value of the best is multiplied by their
number (Bonferroni), or trying more forms would make any metric readable in the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from conviction.core.statistics import ALPHA, mean_test, smallest_p
from conviction.data.topic import Item
from conviction.probing.depth_records import ControlResult, Measurement, Measurements
from conviction.probing.gaps import mean
from conviction.probing.paired import Floats
from conviction.probing.queries import Scores
from conviction.probing.question_forms import FORMS


def control_result(
    metric: str,
    effects: Floats,
    what: str,
    measured_by: tuple[str, ...],
    *,
    unit: str = "nats per token",
    form: str | None = None,
    tried: int = 1,
) -> ControlResult:
    """Readable if the mean effect is above 0 and chance does not explain it (exact sign-flip test, two-sided).

    effects  one a unit of the metric's statistics (proposition, outcome, fact): positive where the control worked
    what     what was done and seen, in words
    tried    forms of question that this is the best of
    """
    if smallest_p(effects.size) * tried >= ALPHA:
        return no_result(metric, f"{effects.size} items are too few for its positive control")
    test = mean_test(effects)
    p = min(1.0, test.p_value * tried)
    readable = p < ALPHA and test.interval.mean > 0
    right = int((effects > 0).sum())
    in_form = f" (asked in the form '{form}', the best of {tried})" if form is not None else ""
    return ControlResult(
        metric=metric,
        outcome="readable" if readable else "not readable",
        form=form,
        value=test.interval.mean,
        low=test.interval.low,
        high=test.interval.high,
        unit=unit,
        n=test.n,
        p_value=p,
        text=f"{what}: {test.interval.mean:+.3f} {unit}, {right} of {test.n} as they should{in_form} (p = {p:.2g})",
        measured_by=measured_by,
    )


def no_result(metric: str, why: str) -> ControlResult:
    """Neither shown to be readable on the model nor not to be."""
    return ControlResult(metric=metric, outcome="no control", unit="", n=0, text=why, measured_by=())


def effects_of(measured: Measurements, metric: str) -> Floats:
    """[items] the measured values of one metric."""
    return np.array(list(measured.of(metric).values()), dtype=np.float64)


def effects_by_form(measured: Sequence[Measurement], condition: str) -> dict[str, Floats]:
    """What follows ``condition:`` in a metric's name (the form, and maybe a part) → [items] its values."""
    names = dict.fromkeys(m.metric for m in measured if m.metric.startswith(f"{condition}:"))
    return {n.removeprefix(f"{condition}:"): np.array([m.value for m in measured if m.metric == n]) for n in names}


def differences_of(measured: Measurements, more: str, less: str) -> Floats:
    """[items] what one metric exceeds another by, of items that have both."""
    base = measured.of(less)
    return np.array([value - base[item] for item, value in measured.of(more).items() if item in base], dtype=np.float64)


def kept_form(control: ControlResult | None, given: str) -> str:
    """The form that arms are asked in: the best of a control that works; else ``given``, no other being any better."""
    return control.form if control is not None and control.outcome == "readable" and control.form else given


def best_form(effects: Mapping[str, Floats]) -> str:
    """The form (name → effects) whose control is least explained by chance, of those that point the right way.

    The first of equals. Only a control's effects go in here, never those of a change.
    """

    def order(name: str) -> tuple[bool, float]:
        test = mean_test(effects[name])
        right_way = test.interval.mean > 0
        return not right_way, test.p_value if right_way else -test.p_value

    return min(effects, key=order)


def measure_in_form(
    metric: str, form: str, condition: str, items: Sequence[Item], scores: Scores, towards: str, away: str
) -> list[Measurement]:
    """One measurement a proposition: the mean gap of its items in that form, nats per token towards ``towards``."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(item.proposition, []).append(item)
    how = FORMS[form]
    return [
        Measurement(
            metric=metric,
            item=proposition,
            value=mean([how.gap(scores, condition, item, towards, away) for item in group]),
            samples=tuple(name for item in group for name in how.samples(condition, item)),
        )
        for proposition, group in groups.items()
    ]
