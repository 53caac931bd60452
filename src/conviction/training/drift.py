"""What the guard's sensors read from: neutral text, held-out prompts, greedy samples.

Everything is compared with the same measure of the model before its first
step, so that a reading is a movement and texts need not be representative.
Works on any causal LM that gives logits: ours in the loop, a TRL user's in the
callback.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from conviction.core.protocols import Generation, Message
from conviction.models.engine.packing import Ids
from conviction.probing.health import neutral_text, repeated_ngram_rate
from conviction.training.sensors import SENSORS, DriftMetrics, Samples

# Prompts that no topic kit holds: what a user would ask next.
EVERYDAY = (
    "What is the difference between a lake and a river?",
    "Write a short note to a neighbour about a parcel.",
    "How do I boil an egg?",
    "Why do leaves turn yellow in autumn?",
    "What should I pack for a weekend in the mountains?",
    "How does a bicycle stay upright?",
)
ROWS, KEEP, WIDTH, TOP = 3, 24, 48, 10  # of each row of WIDTH tokens the last KEEP predictions are read
SAMPLES = 4
LOOPING = 0.2  # share of repeated 4-grams: a prompt on which the untouched model loops tells nothing

Logits = Callable[[Tensor, Tensor, int], Tensor]
"""Token ids [rows, width], mask [rows, width], k → logits [rows, k, vocabulary] of the last k positions."""


@dataclass(frozen=True)
class DriftMonitor:
    """Rows that are read after every step: pieces of neutral text, and held-out prompts with an answer's beginning."""

    neutral: tuple[Ids, ...]
    held_out: tuple[Ids, ...]

    @classmethod
    def prepare(cls, encode_text: Callable[[str], Ids], held_out: Sequence[Ids]) -> DriftMonitor:
        """Neutral pieces from all over the bundled text, and the ends of the given rows."""
        paragraphs = neutral_text()
        chosen = [paragraphs[i * len(paragraphs) // ROWS] for i in range(ROWS)]
        return cls(tuple(encode_text(text)[:WIDTH] for text in chosen), tuple(row[-WIDTH:] for row in held_out))

    @torch.no_grad()
    def read(self, logits: Logits, device: torch.device) -> DriftMetrics:
        """One forward pass; rows are padded on the left, so that what is read stands at the end of each."""
        rows = [*self.neutral, *self.held_out]
        width = max(map(len, rows))
        ids = torch.tensor([(0,) * (width - len(row)) + row for row in rows], device=device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
        out = logits(ids, mask, KEEP + 1)
        neutral, entropy, mass = [], [], []
        for i, row in enumerate(rows):
            logp = torch.log_softmax(out[i, -len(row) :].float(), dim=-1)  # a short row's padding tells nothing
            if i < len(self.neutral):
                neutral.append(logp[:-1].gather(1, ids[i, 1 - len(logp) :, None]))
            else:
                entropy.append(torch.special.entr(logp.exp()).sum(-1))  # a masked token has p = 0, not NaN
                mass.append(logp.topk(min(TOP, logp.shape[-1])).values.exp().sum(-1))
        return DriftMetrics(*(float(torch.cat(v).mean()) if v else math.nan for v in (neutral, entropy, mass)))


def held_out_rows(prompts: Sequence[Ids], answers: Sequence[Generation]) -> list[Ids]:
    """Each prompt with the first tokens that the untouched model answered: where entropy is read."""
    return [(prompt + answer.token_ids[:KEEP]) for prompt, answer in zip(prompts, answers, strict=True)]


def choose_samples(
    asked: Sequence[tuple[Message, ...]], answers: Sequence[Generation]
) -> tuple[list[tuple[Message, ...]], list[Generation]]:
    """The first prompts that the untouched model answers without looping, and its answers; all, if it always loops."""
    sound = [
        (p, g) for p, g in zip(asked, answers, strict=True) if repeated_ngram_rate(g.token_ids) < LOOPING and g.text
    ]
    kept = (sound or list(zip(asked, answers, strict=True)))[:SAMPLES]
    return [p for p, _ in kept], [g for _, g in kept]


def read_samples(
    prompts: Sequence[tuple[Message, ...]], before: Sequence[Generation], now: Sequence[Generation]
) -> dict[str, float]:
    """What the sensors read in greedy answers, against those of the untouched model to the same prompts."""
    samples = Samples(prompts, before, now)
    return _known({s.name: s.read_samples(samples) for s in SENSORS.values() if s.read_samples is not None})


def read_drift(before: DriftMetrics, now: DriftMetrics) -> dict[str, float]:
    """What the sensors read in the metrics of a model now, against those of the untouched model."""
    return _known({s.name: s.read_drift(before, now) for s in SENSORS.values() if s.read_drift is not None})


def _known(readings: Mapping[str, float | None]) -> dict[str, float]:
    """Without what does not apply."""
    return {name: value for name, value in readings.items() if value is not None}
