"""Packed scores are held against separate ones: two items at load, and a sample of the actual rows in every run.

A wrong mask, position, window or head shows up here as a difference, and the
model then scores separate rows and says so. What depends on length (a window
given as a mask, rotary frequencies that change beyond the original context) shows
only on the actual rows, which is why those are scored again as well.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from conviction.core.protocols import chat
from conviction.models.engine.protocol import PackingEngine, Row, Scores
from conviction.models.prompts import PromptEncoder

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

# Of all rows one in so many is scored again, and of the first rows of a model at least so many.
SAMPLED, AT_LEAST = 64, 3
# A sample that does not agree is scored again with so many rows more, the longest and others: what rounding does is
# estimated from as many rows as are compared, and of six, one may round further than three times the others' largest
# (SmolLM2-135M in bf16: 0.10 in a row's mean, 0.017 in the rounding of all six, 0.10 in that of 22).
SECOND_LOOK = 16


@dataclass(frozen=True)
class Agreement:
    """How rows that were scored in packs compare with the model's own ``forward``, one row at a time.

    rows             how many were scored again
    longest          tokens of the longest of them
    max_difference   the largest over their tokens, nats
    mean_difference  the largest over rows, of a row's mean log-prob, nats per token
    accepted         whether both are within what rounding does
    tolerances       that: what a token, and a row's mean, may differ by
    """

    rows: int
    longest: int
    max_difference: float
    mean_difference: float
    accepted: bool
    tolerances: tuple[float, float]

    def joined(self, earlier: Agreement | None) -> Agreement:
        """Of these rows and of those that were compared before."""
        if earlier is None:
            return self
        return Agreement(
            self.rows + earlier.rows,
            max(self.longest, earlier.longest),
            max(self.max_difference, earlier.max_difference),
            max(self.mean_difference, earlier.mean_difference),
            self.accepted and earlier.accepted,
            (max(self.tolerances[0], earlier.tolerances[0]), max(self.tolerances[1], earlier.tolerances[1])),
        )

    def summary(self) -> dict[str, Any]:
        """For provenance."""
        return {
            "rows": self.rows,
            "longest_row_tokens": self.longest,
            "max_difference_nats": self.max_difference,
            "mean_difference_nats": self.mean_difference,
            "accepted": self.accepted,
        }


def rows_to_rescore(rows: Iterable[Row], earlier: Agreement | None) -> list[Row]:
    """A sample of rows, the same whenever the rows are the same: one in ``SAMPLED``, and the longest.

    The longest only where it is longer than any that was compared before; the
    first sample of a model has at least ``AT_LEAST`` rows.
    """
    ordered = sorted(rows, key=lambda row: (_digest(row), row))
    if not ordered:
        return []
    sample = [row for row in ordered if _digest(row) % SAMPLED == 0]
    longest = max(ordered, key=_length)
    if (earlier is None or _length(longest) > earlier.longest) and longest not in sample:
        sample.append(longest)
    if earlier is None:
        sample += [row for row in ordered if row not in sample][: max(0, AT_LEAST - len(sample))]
    return sample


def rescore(engine: PackingEngine, scored: Scores, earlier: Agreement | None) -> Agreement | None:
    """Score a sample of the rows again, each by itself through the model's own ``forward``, and compare.

    A sample that does not agree is scored again together with more rows, and these decide.

    scored   what all rows got
    earlier  of the same model; None: this is its first sample

    Returns None where no row is in the sample.
    """
    sample = rows_to_rescore(scored, earlier)
    if not sample:
        return None
    latest = compare(engine, _merged(engine.score(sample)), scored, earlier=earlier)
    if latest.accepted:
        return latest
    return compare(engine, _merged(engine.score([*sample, *_more_rows(scored, sample)])), scored)


def _more_rows(rows: Iterable[Row], sample: Sequence[Row]) -> list[Row]:
    """``SECOND_LOOK`` rows that are not in the sample: the longest, for a fault may be theirs alone, and others."""
    others = sorted(set(rows) - set(sample), key=lambda row: (-_length(row), _digest(row), row))
    longest, rest = others[: SECOND_LOOK // 2], others[SECOND_LOOK // 2 :]
    return [*longest, *sorted(rest, key=lambda row: (_digest(row), row))[: SECOND_LOOK - len(longest)]]


def compare(
    engine: PackingEngine,
    separate: Scores,
    scored: Scores,
    *,
    same_dtype: bool = True,
    earlier: Agreement | None = None,
) -> Agreement:
    """How scores compare with those of separate rows by the engine.

    same_dtype  False: they were computed in another dtype than the engine's, whose rounding is
                not known; the widest bounds then hold
    earlier     of the same model: rounding is not measured again for what is within that
    """
    largest, mean = _differences(separate, scored)
    tolerances = earlier.tolerances if earlier is not None else (0.0, 0.0)
    if not (largest <= tolerances[0] and mean <= tolerances[1]):
        wide = (BOUNDS[1], BOUNDS_OF_MEANS[1])
        tolerances = _tolerances(engine, separate, (largest, mean)) if same_dtype else wide
    accepted = largest <= tolerances[0] and mean <= tolerances[1]  # False for NaN, too
    return Agreement(len(separate), max(map(_length, separate)), largest, mean, accepted, tolerances)


def _length(row: Row) -> int:
    return len(row[0]) + len(row[1])


def _digest(row: Row) -> int:
    return zlib.crc32(array("q", [len(row[0]), *row[0], *row[1]]).tobytes())


def _tolerances(engine: PackingEngine, separate: Scores, differences: tuple[float, float]) -> tuple[float, float]:
    """What rounding may do to a token and to an answer's mean; it is measured where the least bounds do not do."""
    if engine.dtype == "float32":
        return TOLERANCE_FP32, TOLERANCE_FP32
    if differences[0] <= BOUNDS[0] and differences[1] <= BOUNDS_OF_MEANS[0]:
        return BOUNDS[0], BOUNDS_OF_MEANS[0]
    with engine.rounded():
        rounding = _differences(separate, _merged(engine.score(list(separate))))
    return _within(rounding[0], BOUNDS), _within(rounding[1], BOUNDS_OF_MEANS)


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
    longest = max(map(_length, rows))
    if encoder.context_length is not None and longest > encoder.context_length:  # a template may add any text
        reason = f"a short question has {longest} tokens, more than the model's context of {encoder.context_length}"
        return SelfCheck(False, None, TOLERANCE_FP32, 0.0, f"separate rows: {reason}")
    separate = _merged(engine.score(rows))
    half = engine.dtype != "float32"
    tolerance = of_means = TOLERANCE_FP32
    try:
        packed = _merged(score_packed(rows))
        # In fp32 the company in a batch changes nothing that matters; elsewhere it is measured.
        lonely = _merged(score_packed(rows[:1])) if half else {}
        difference, mean = _differences(separate, packed)
        tolerance, of_means = _tolerances(engine, separate, (difference, mean))
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
