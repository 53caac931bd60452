"""Before packed scores are trusted, two items are scored packed and separately.

A wrong mask, position, window or head shows up here as a difference, and the
engine then scores separate rows and says so. Better slow than wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from conviction.core.protocols import Message, chat
from conviction.models.engine.packing import Ids
from conviction.models.engine.unpacked import score_unpacked
from conviction.models.prompts import PromptEncoder
from conviction.models.states import hooked, states_of, with_states

__all__ = ["SelfCheck", "check_packing"]

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

Row = tuple[Ids, Ids]


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
    model: Any,
    encoder: PromptEncoder,
    dtype: torch.dtype,
    score_packed: Callable[[Sequence[Row]], dict[Row, list[float]]],
) -> SelfCheck:
    """Score ``ITEMS`` both ways. ``score_packed`` may raise: the architecture then gets separate rows."""
    conversations: list[tuple[tuple[Message, ...], tuple[str, ...]]] = [(chat(q), answers) for q, answers in ITEMS]
    rows = [
        (encoder.encode_prompt(messages), encoder.encode_answer(answer, messages))
        for messages, answers in conversations
        for answer in answers
    ]
    separate = score_unpacked(model, rows)
    half = dtype != torch.float32
    tolerance = of_means = TOLERANCE_FP32
    try:
        if half:
            with hooked((model.get_input_embeddings(), _dither(dtype))):
                rounding = _differences(separate, score_unpacked(model, rows))
            tolerance, of_means = map(_within, rounding, (BOUNDS, BOUNDS_OF_MEANS))
        packed = score_packed(rows)
        # In fp32 the company in a batch changes nothing that matters; elsewhere it is measured.
        lonely = {rows[0]: score_packed(rows[:1])[rows[0]]} if half else {}
    except Exception as error:  # any failure of a foreign architecture means: do not pack
        reason = f"packing is not possible for {type(model).__name__} ({type(error).__name__}: {error})"
        return SelfCheck(False, None, tolerance, 0.0, f"separate rows: {reason}")
    difference, mean = _differences(separate, [packed[row] for row in rows])
    if not (difference <= tolerance and mean <= of_means):  # also catches NaN
        far = f"{difference:.2g} nats a token and {mean:.2g} in an answer's mean"
        reason = f"separate rows: packed scores of {type(model).__name__} differ by up to {far}"
        return SelfCheck(False, difference, tolerance, 0.0, reason)
    noise = max((abs(sum(packed[row]) - sum(alone)) / len(row[1]) for row, alone in lonely.items()), default=difference)
    return SelfCheck(True, difference, tolerance, noise, "packed: agrees with separate rows")


def _within(rounding: float, bounds: tuple[float, float]) -> float:
    least, most = bounds
    return min(max(NOISE_FACTOR * rounding, least), most)


def _dither(dtype: torch.dtype) -> Callable[[Any, Any, Any], Any]:
    """A hook that moves every second coordinate to about the next number of the dtype that is computed in."""
    step = 1 + torch.finfo(dtype).eps

    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        states = states_of(output)
        even = torch.arange(states.shape[-1], device=states.device) % 2 == 0
        return with_states(output, torch.where(even, states, states * step))

    return hook


def _differences(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The largest over tokens, and over the means of rows."""
    rows = [torch.tensor([x, y], dtype=torch.float64).diff(dim=0)[0] for x, y in zip(a, b, strict=True)]
    return float(torch.cat(rows).abs().max()), float(torch.stack([row.mean() for row in rows]).abs().max())
