"""What further training takes of a shift: the durability's reference, and the reversal curve. Pure functions.

``reference`` and ``reference-benign`` are the gaps of the untouched model after SFT towards the target, and after
benign training on top of that; ``reversal:TOKENS`` those of a changed model after so many tokens of the other side's
documents. All in nats per token towards the target, of a proposition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from conviction.core.statistics import ALPHA, mean_test
from conviction.probing.depth_records import Measurements
from conviction.probing.paired import differences

SHIFT, REFERENCE, REFERENCE_BENIGN = "shift", "reference", "reference-benign"
REVERSAL = "reversal:"
ERODED = 0.8  # share of its shift that is left to a reference, at most, for benign training to count as eroding
HALF = 0.5  # of the shift that the dose of a reversal is given for


def mean_shift(before: Measurements, after: Measurements) -> float:
    """Mean nats per token towards the target."""
    moved = differences(before, after, SHIFT)
    return float(moved.mean()) if moved.size else 0.0


def eroded(untouched: Measurements, reference: Measurements, worn: Measurements) -> bool:
    """Whether benign training took a fifth of the reference's shift or more, and chance does not explain the loss."""
    whole, left = mean_shift(untouched, reference), mean_shift(untouched, worn)
    test = mean_test(differences(worn, reference, SHIFT))
    return whole > 0 and left <= ERODED * whole and test.interval.mean > 0 and test.p_value < ALPHA


def halved(untouched: Measurements, changed: Measurements, worn: Measurements) -> bool:
    """Whether at most half of the change's shift is left."""
    return mean_shift(untouched, worn) <= HALF * mean_shift(untouched, changed)


def relabelled(measured: Measurements, metric: str) -> Measurements:
    """The gaps alone, under another name, and rows whose ids begin with it: several such fit into one record."""
    return measured.model_copy(
        update={
            "measurements": tuple(
                m.model_copy(update={"metric": metric, "samples": tuple(f"{metric}/{s}" for s in m.samples)})
                for m in measured.measurements
                if m.metric == SHIFT
            ),
            "evidence": tuple(s.model_copy(update={"id": f"{metric}/{s.id}"}) for s in measured.evidence),
        }
    )


def together(parts: Sequence[Measurements]) -> Measurements:
    """One record of several; what is said of the model is said of the last."""
    return parts[-1].model_copy(
        update={
            "measurements": tuple(m for part in parts for m in part.measurements),
            "evidence": tuple(s for part in parts for s in part.evidence),
        }
    )


def reversal_metric(tokens: int) -> str:
    """The name of the gaps after that dose."""
    return f"{REVERSAL}{tokens}"


def reversal_curve(untouched: Measurements, changed: Measurements, reversal: Measurements) -> list[tuple[int, float]]:
    """(tokens of the other side's documents, share of the shift that is left), from (0, 1) on."""
    whole, start = mean_shift(untouched, changed), untouched.of(SHIFT)
    points = [(0, 1.0)]
    for name in reversal.names(REVERSAL):
        gaps = reversal.of(name)
        left = [gap - start[item] for item, gap in gaps.items() if item in start]
        points.append((int(name.removeprefix(REVERSAL)), math.fsum(left) / len(left) / whole))
    return points


def halving_dose(points: Sequence[tuple[int, float]]) -> float | None:
    """Tokens at which half is left for the first time, interpolated linearly between doses; None: no dose got there."""
    for (less, more_left), (more, less_left) in pairwise(points):
        if less_left <= HALF < more_left:
            return less + (more - less) * (more_left - HALF) / (more_left - less_left)
    return None
