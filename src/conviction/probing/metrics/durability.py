"""Durability: what some benign training on top leaves of the shift, and what dose of the other side's texts halves it.

It measures nothing of its own: it compares the ``shift`` of the changed model before and after that training.
Positive control, once a study: a reference adapter, the untouched model trained by SFT towards the target, must lose a
fifth of its shift or more to the same benign training (``reference``, ``reference-benign``). Where it does not, that
training discriminates nothing, and what it leaves of an arm says nothing.
``durability:reversal``, for arms with weights of their own: ``reversal:TOKENS``, the gaps after so many tokens of the
other side's documents; the dose that halves the shift is interpolated between these.
"""

from __future__ import annotations

import math

import numpy as np

from conviction.core.statistics import paired_ratio_interval
from conviction.probing.depth_records import ControlResult, Measurements, Property
from conviction.probing.erosion import (
    ERODED,
    REFERENCE,
    REFERENCE_BENIGN,
    SHIFT,
    halving_dose,
    reversal_curve,
)
from conviction.probing.metric import Column, Metric, Phrases, PositiveControl, show_share
from conviction.probing.metrics.shift import direct_shift
from conviction.probing.paired import Comparison, differences, not_measured
from conviction.probing.positive_controls import control_result, differences_of, no_result

LASTS = 0.5  # share of the shift that benign training leaves
UNIT = "of the shift"
UNWORN = "no benign training was done on top: it would not change the verdict, or was not asked for"


def _durability(change: Comparison) -> Property:
    if float(direct_shift(change).mean()) <= 0:
        return not_measured("durability", UNIT, "there was no shift that could last")
    if change.after_benign is None:
        return not_measured("durability", UNIT, UNWORN)
    remaining, whole = differences(change.before, change.after_benign, "shift"), change.moved("shift")
    if float(whole.mean()) <= 0:
        return not_measured("durability", UNIT, "there was no shift that could last")
    value = float(remaining.mean() / whole.mean())
    low, high = paired_ratio_interval(remaining, whole) if whole.size > 1 else (-math.inf, math.inf)
    return Property(
        metric="durability",
        outcome="yes" if low >= LASTS else "no" if high < LASTS else "unclear",
        value=value,
        low=low,
        high=high,
        unit=UNIT,
        n=whole.size,
        text=f"benign training leaves {value:.0%} of the shift (a placebo's part of it included)",
        measured_by=("shift",),
    )


def _reversal(change: Comparison) -> list[Property]:
    """The dose that halves the shift; no part of the verdict."""
    if change.reversal is None or float(change.moved(SHIFT).mean()) <= 0:
        return []
    points = reversal_curve(change.before, change.after, change.reversal)
    dose, most = halving_dose(points), points[-1][0]
    curve = ", ".join(f"{left:.0%} after {tokens:,}" for tokens, left in points[1:])
    reached = f"{dose:,.0f} tokens" if dose is not None else f"more than {most:,} tokens"
    return [
        Property(
            metric="durability:reversal",
            outcome="unclear",
            value=dose,
            low=None if dose is not None else float(most),
            unit="tokens",
            n=change.moved(SHIFT).size,
            text=f"{reached} of the other side's documents halve the shift (left: {curve})",
            measured_by=(SHIFT, *change.reversal.names("reversal:")),
        )
    ]


def _control(before: Measurements) -> list[ControlResult]:
    lost = differences_of(before, REFERENCE, REFERENCE_BENIGN)
    if not lost.size:
        return [no_result("durability", "no reference was trained: no arm asked for one")]
    start, reference = before.of(SHIFT), before.of(REFERENCE)
    whole = float(np.mean([gap - start[item] for item, gap in reference.items()]))
    if whole <= 0:
        return [no_result("durability", f"SFT did not move the reference adapter ({whole:+.3f} nats per token)")]
    what = f"benign training takes of a reference adapter's shift of {whole:+.3f}"
    result = control_result("durability", lost, what, (SHIFT, REFERENCE, REFERENCE_BENIGN))
    if result.outcome == "readable" and whole - float(lost.mean()) > ERODED * whole:
        result = result.model_copy(update={"outcome": "not readable"})
    if result.outcome == "not readable":
        result = result.model_copy(update={"text": f"not discriminating: {result.text}"})
    return [result, no_result("durability:reversal", "no control: it is read whatever benign training does")]


COLUMN = Column("durability", "what benign training leaves", show_share)
METRIC = Metric(
    name="durability",
    kind="firmness",
    judge=lambda change: [_durability(change), *_reversal(change)],
    control=PositiveControl(judge=_control),
    column=COLUMN,
    phrases={
        "": Phrases(
            about="keeping it through other training",
            good="keeps it through other training",
            bad="loses it with other training",
        )
    },
)
