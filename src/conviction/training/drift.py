"""What the guard's sensors read from: neutral text, held-out prompts, greedy samples.

Everything is compared with the same measure of the model before its first
step, so that a reading is a movement and texts need not be representative.
Works on any causal LM that gives logits: ours in the loop, a TRL user's in the
callback.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from conviction.core.protocols import Generation, Message
from conviction.models.engine.packing import Ids
from conviction.models.memory import memory_errors
from conviction.probing.health import neutral_text, repeated_ngram_rate
from conviction.probing.metrics.health import PARAGRAPHS
from conviction.probing.paired import Comparison
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
KEEP, WIDTH, TOP = 24, 48, 10  # of each held-out row of WIDTH tokens the last KEEP predictions are read
PIECES, PIECE = 9, 65  # pieces of neutral text, tokens of each: all are predicted but the first, 576 in all
DENSE = 4  # the divergence is computed at every so many tokens of a piece: whole distributions are kept for it
GROUP = 4  # rows in one forward pass: logits of a large vocabulary take much memory
SHARE = 0.1  # of a step's arithmetic that a kind of reading may cost on average
ROUNDS = 4  # of the parts, then all rows at once: a state of which nothing is left to be read
STEP = 3  # forward and backward take so many forward passes of the same tokens (Kaplan et al. 2001.08361, 2.1)
SAMPLES = 4
LOOPING = 0.2  # share of repeated 4-grams: a prompt on which the untouched model loops tells nothing

Logits = Callable[[Tensor, Tensor, int], Tensor]
"""Token ids [rows, width], mask [rows, width], k → logits [rows, k, vocabulary] of the last k positions."""


RowMetrics = dict[str, tuple[float, int]]
"""What was read of one row: measure → (sum over its positions, how many they are)."""


@dataclass(frozen=True)
class DriftMonitor:
    """Rows that are read during a run: pieces of neutral text, and held-out prompts with an answer's beginning.

    parts      a reading takes one of so many parts of the rows, the parts in turn
    every      steps from one reading to the next
    reference  of each piece, the untouched model's log-probs [positions, vocabulary] at every ``DENSE`` tokens; none:
               the divergence from it is not read
    """

    neutral: tuple[Ids, ...]
    held_out: tuple[Ids, ...]
    parts: int = 1
    every: int = 1
    reference: tuple[Tensor, ...] = field(default=(), repr=False)

    @classmethod
    def prepare(
        cls, encode_text: Callable[[str], Ids], held_out: Sequence[Ids], *, step_tokens: float | None = None
    ) -> DriftMonitor:
        """Neutral pieces from all over the bundled text, and the ends of the given rows.

        step_tokens  tokens of a training step, on average: with it, rows are read in parts where all of them would
                     cost more than ``SHARE`` of a step, and a part as often as that allows
        """
        neutral, ends = neutral_rows(encode_text, PIECES, PIECE), tuple(row[-WIDTH:] for row in held_out)
        tokens = sum(map(len, (*neutral, *ends)))
        if interval_of(tokens, step_tokens) == 1:
            return cls(neutral, ends)
        parts = math.ceil((len(neutral) + len(ends)) / GROUP)
        return cls(neutral, ends, parts, interval_of(tokens / parts * (1 + 1 / ROUNDS), step_tokens))

    @property
    def every_all(self) -> int:
        """Least number of steps from one reading of all rows at once to the next."""
        return ROUNDS * self.parts * self.every

    def with_reference(self, logits: Logits, device: torch.device) -> DriftMonitor:
        """The same, which reads the divergence from the model as it is now, too. fp16: an error under 0.001 nats."""
        kept: dict[int, Tensor] = {}
        for part in range(self.parts):
            for i, logp in self._logps(logits, device, self.rows_of(part)):
                if i < len(self.neutral):
                    kept[i] = logp[:-1:DENSE].half()
        return replace(self, reference=tuple(kept[i] for i in range(len(self.neutral))))

    def rows_of(self, part: int) -> list[int]:
        """Indices of a part's rows; held-out rows come after the neutral ones."""
        neutral = range(part, len(self.neutral), self.parts)
        return [*neutral, *(len(self.neutral) + i for i in range(part, len(self.held_out), self.parts))]

    def read(self, logits: Logits, device: torch.device) -> DriftMetrics:
        """All rows."""
        return combined(self.read_all(logits, device).values())

    def read_all(self, logits: Logits, device: torch.device) -> dict[int, RowMetrics]:
        """All rows, part by part: what else is in a pass may change a row by rounding, and must not change later."""
        return {i: row for part in range(self.parts) for i, row in self.read_part(part, logits, device).items()}

    def read_part(self, part: int, logits: Logits, device: torch.device) -> dict[int, RowMetrics]:
        """The rows of one part, by their indices."""
        return {i: self._measure(i, logp) for i, logp in self._logps(logits, device, self.rows_of(part))}

    def _measure(self, i: int, logp: Tensor) -> RowMetrics:
        count = len(logp)
        if i >= len(self.neutral):
            entropy = torch.special.entr(logp.exp()).sum(-1)  # a masked token has p = 0, not NaN
            mass = logp.topk(min(TOP, logp.shape[-1])).values.exp().sum(-1)
            return {"entropy": (float(entropy.sum()), count), "top_mass": (float(mass.sum()), count)}
        targets = torch.tensor(self.neutral[i][1 - count :], device=logp.device)
        row: RowMetrics = {"neutral": (float(logp[:-1].gather(1, targets[:, None]).sum()), count - 1)}
        if self.reference:
            before = self.reference[i].float()
            terms = before.exp() * (before - logp[:-1:DENSE])
            kl = torch.where(before.exp() > 0, terms, 0.0).sum(-1)  # a masked token: 0 · (−∞ + ∞)
            row["kl"] = (float(kl.sum()), len(kl))
        return row

    @torch.no_grad()
    def _logps(self, logits: Logits, device: torch.device, indices: Sequence[int]) -> Iterable[tuple[int, Tensor]]:
        """(index, log-probs [positions, vocabulary]) of rows, a few in one pass.

        Rows are padded on the left, so that what is read stands at the end of each.
        """
        with memory_errors("the guard's sensors", reduce="give --guard none, or shorten the held-out questions"):
            yield from self._read_rows(logits, device, indices)

    def _read_rows(self, logits: Logits, device: torch.device, indices: Sequence[int]) -> Iterable[tuple[int, Tensor]]:
        every = [*self.neutral, *self.held_out]
        for start in range(0, len(indices), GROUP):
            group = indices[start : start + GROUP]
            rows = [every[i] for i in group]
            keeps = [
                len(row) if i < len(self.neutral) else min(len(row), KEEP + 1)
                for i, row in zip(group, rows, strict=True)
            ]
            width = max(map(len, rows))
            ids = torch.tensor([(0,) * (width - len(row)) + row for row in rows], device=device)
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
            out = logits(ids, mask, max(keeps))
            for k, i in enumerate(group):  # of a short row, padding tells nothing
                yield i, torch.log_softmax(out[k, -keeps[k] :].float(), dim=-1)


def combined(rows: Iterable[RowMetrics]) -> DriftMetrics:
    """Means over all positions of the rows; NaN where none of them has a measure."""
    sums: dict[str, tuple[float, int]] = {}
    for row in rows:
        for name, (total, count) in row.items():
            old, seen = sums.get(name, (0.0, 0))
            sums[name] = (old + total, seen + count)
    means = {name: total / count for name, (total, count) in sums.items() if count}
    return DriftMetrics(**{"neutral": math.nan, **means})


def neutral_rows(encode_text: Callable[[str], Ids], count: int, tokens: int) -> tuple[Ids, ...]:
    """Beginnings of so many paragraphs of the neutral text, spread over all of it."""
    paragraphs = neutral_text()
    return tuple(encode_text(paragraphs[i * len(paragraphs) // count])[:tokens] for i in range(count))


def unread_paragraphs(count: int) -> list[str]:
    """At most so many paragraphs of the neutral text that neither the guard reads nor the judge's metric of health.

    A run that is trained on what it is judged by would look healthier than it is.
    """
    paragraphs = neutral_text()
    read = {i * len(paragraphs) // n for n in (PIECES, PARAGRAPHS) for i in range(n)}
    rest = [i for i in range(len(paragraphs)) if i not in read]
    count = min(count, len(rest))
    return [paragraphs[rest[i * len(rest) // count]] for i in range(count)]


def interval_of(tokens: float, step_tokens: float | None) -> int:
    """Every how many steps a forward pass over ``tokens`` costs at most ``SHARE`` of the steps between; unknown: 1.

    From counts of tokens and not from a clock: a run must be the same when it is done again.
    """
    return max(1, math.ceil(tokens / (SHARE * STEP * step_tokens))) if step_tokens else 1


def held_out_rows(prompts: Sequence[Ids], answers: Sequence[Generation]) -> list[Ids]:
    """Each prompt with the first tokens that the untouched model answered: where entropy is read."""
    return [(prompt + answer.token_ids[:KEEP]) for prompt, answer in zip(prompts, answers, strict=True)]


def short_questions() -> list[str]:
    """What sensors want the samples to answer, besides everyday questions."""
    return [question for sensor in SENSORS.values() for question in sensor.questions]


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


def read_topic(change: Comparison) -> dict[str, float]:
    """What the sensors read in the judge's measurements of a model now, against those of the untouched model."""
    return _known({s.name: s.read_topic.read(change) for s in SENSORS.values() if s.read_topic is not None})


def read_drift(before: DriftMetrics, now: DriftMetrics) -> dict[str, float]:
    """What the sensors read in the metrics of a model now, against those of the untouched model."""
    return _known({s.name: s.read_drift(before, now) for s in SENSORS.values() if s.read_drift is not None})


def _known(readings: Mapping[str, float | None]) -> dict[str, float]:
    """Without what does not apply."""
    return {name: value for name, value in readings.items() if value is not None}
