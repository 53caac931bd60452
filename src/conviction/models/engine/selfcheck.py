"""Before packed scores are trusted, two items are scored packed and separately.

A wrong mask, position, window or head shows up here as a difference, and the
engine then scores separate rows and says so. Better slow than wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from conviction.core.protocols import chat
from conviction.models.engine.protocol import PackingEngine, Row, Scores
from conviction.models.prompts import PromptEncoder

__all__ = ["UNPACKED", "SelfCheck", "check_packing"]

TOLERANCE_FP32 = 1e-4  # nats, per token

# Half-precision rounding differs with the shape of every multiplication, and logits
# near 20 are known to an eighth. What that does to separate rows is measured: their
# embeddings are moved by one rounding step, after which all that follows rounds
# otherwise. Packing, whose logits are fp32, may differ by three times as much, within
# bounds. (The same rows padded in one batch are no measure: on an H100 they came out bit
# for bit as they do alone, while packing differed by 0.2 nats, and was refused.)
NOISE_FACTOR = 3.0
BOUNDS = (0.02, 1.0)  # nats, of a token
BOUNDS_OF_MEANS = (0.01, 0.2)  # nats per token, of an answer: rounding averages out, a wrong mask does not


@dataclass(frozen=True)
class SelfCheck:
    """What the check found.

    difference  packed against separate rows: the largest over tokens, nats; None if packing failed
    tolerance   the largest difference that was allowed; half-precision means are held to less
    noise       what the company in a batch does to an answer's mean log-prob, nats per
                token: gaps below it are ties
    """

    packed: bool
    difference: float | None
    tolerance: float
    noise: float
    reason: str

    def summary(self) -> dict[str, Any]:
        """For provenance."""
        return {
            "packed": self.packed,
            "max_difference_nats": self.difference,
            "tolerance_nats": self.tolerance,
            "reason": self.reason,
        }


UNPACKED = SelfCheck(packed=False, difference=None, tolerance=0.0, noise=0.0, reason="the engine takes separate rows")
"""Of an engine that knows no packing: there is nothing to check."""

ITEMS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "What is the capital of France?",
        ("The capital of France is Paris.", "The capital of France is a port in Italy."),
    ),
    (
        "Why does ice float on water, although it is solid?",
        ("Ice floats because it is lighter than the same volume of water.", "Because of the wind."),
    ),
)


def check_packing(
    engine: PackingEngine,
    encoder: PromptEncoder,
    score_packed: Callable[[Sequence[Row]], Iterable[Scores]],
) -> SelfCheck:
    """Score ``ITEMS`` both ways. ``score_packed`` may raise: the architecture then gets separate rows."""
    encoded = [encoder.encode(chat(question), answers) for question, answers in ITEMS]
    rows = [(prompt, answer) for prompt, answers in encoded for answer in answers]
    separate = _merged(engine.score(rows))
    half = engine.dtype != "float32"
    tolerance = of_means = TOLERANCE_FP32
    try:
        if half:
            with engine.rounded():
                rounding = _differences(separate, _merged(engine.score(rows)))
            tolerance, of_means = map(_within, rounding, (BOUNDS, BOUNDS_OF_MEANS))
        packed = _merged(score_packed(rows))
        # In fp32 the company in a batch changes nothing that matters; elsewhere it is measured.
        lonely = _merged(score_packed(rows[:1])) if half else {}
        difference, mean = _differences(separate, packed)
    except Exception as error:  # any failure of a foreign architecture means: do not pack
        reason = f"packing is not possible for {engine.architecture} ({type(error).__name__}: {error})"
        return SelfCheck(False, None, tolerance, 0.0, f"separate rows: {reason}")
    if not (difference <= tolerance and mean <= of_means):  # also catches NaN
        far = f"{difference:.2g} nats a token and {mean:.2g} in an answer's mean"
        reason = f"separate rows: packed scores of {engine.architecture} differ by up to {far}"
        return SelfCheck(False, difference, tolerance, 0.0, reason)
    noise = max((abs(sum(packed[row]) - sum(alone)) / len(row[1]) for row, alone in lonely.items()), default=difference)
    return SelfCheck(True, difference, tolerance, noise, "packed: agrees with separate rows")


def _merged(batches: Iterable[Scores]) -> Scores:
    return {row: values for batch in batches for row, values in batch.items()}


def _within(rounding: float, bounds: tuple[float, float]) -> float:
    least, most = bounds
    return min(max(NOISE_FACTOR * rounding, least), most)


def _differences(a: Scores, b: Scores) -> tuple[float, float]:
    """The largest over tokens, and over the means of rows; NaN if there is one."""
    rows = [np.abs(np.subtract(a[row], b[row])) for row in a]
    means = [np.abs(np.mean(np.subtract(a[row], b[row]))) for row in a]
    return float(np.concatenate(rows).max()), float(np.max(means))
