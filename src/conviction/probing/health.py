"""Whether a model still writes and predicts ordinary text.

Degeneration measures over greedy answers, and mean log-prob per token on a
bundled neutral text (written for this project; everyday subjects). Pure
functions; ``measure_health`` at the end asks the model.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files

from conviction.core.protocols import Generation, LanguageModel, Progress
from conviction.probing.records import Degeneration, Health, Sample

QUICK_PARAGRAPHS, QUICK_WORDS = 6, 60


def repeated_ngram_rate(tokens: Sequence[int], n: int = 4) -> float:
    """Share of n-grams that stood before in the same text: 0 for fresh prose, near 1 for a loop."""
    grams = _ngrams(tokens, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def ngram_entropy(tokens: Sequence[int]) -> float:
    """Bits: ½(⅔·H₂ + 4⁄3·H₃) over bigrams and trigrams, ROME's fluency measure GE (Meng et al. 2202.05262)."""
    return 0.5 * (2 / 3 * _entropy(_ngrams(tokens, 2)) + 4 / 3 * _entropy(_ngrams(tokens, 3)))


def non_alphanumeric_share(text: str) -> float:
    """Share of visible characters that are neither letters nor digits: prose ~0.03, dots and dashes ~1."""
    visible = [c for c in text if not c.isspace()]
    return sum(not c.isalnum() for c in visible) / len(visible) if visible else 0.0


def compression_ratio(text: str) -> float:
    """Bytes over zlib-compressed bytes: prose 1.3-2.5, loops far above. Grows with length."""
    raw = text.encode()
    return len(raw) / len(zlib.compress(raw, 9)) if raw else 1.0


def degeneration(answers: Sequence[Generation]) -> Degeneration:
    """All measures over a batch of answers: means over the answers that hold text; empty ones are counted.

    end_of_text_rate is the share of answers that the model ended by itself.
    """

    def mean(values: list[float]) -> float:
        return math.fsum(values) / len(values) if values else 0.0

    written = [a for a in answers if a.token_ids]
    return Degeneration(
        answers=len(answers),
        empty_rate=mean([float(not a.text.strip()) for a in answers]),
        repeated_4gram_rate=mean([repeated_ngram_rate(a.token_ids) for a in written]),
        ngram_entropy_bits=mean([ngram_entropy(a.token_ids) for a in written]),
        non_alphanumeric_share=mean([non_alphanumeric_share(a.text) for a in written]),
        compression_ratio=mean([compression_ratio(a.text) for a in written]),
        end_of_text_rate=mean([float(a.ended) for a in answers]),
    )


def neutral_text() -> list[str]:
    """The bundled neutral paragraphs, about 15,000 tokens in all."""
    text = files("conviction.probing").joinpath("neutral.txt").read_text(encoding="utf-8")
    return [paragraph for paragraph in text.split("\n\n") if paragraph.strip()]


def neutral_excerpts(count: int, words: int) -> list[str]:
    """Beginnings of so many of the neutral paragraphs, spread over all of them."""
    paragraphs = neutral_text()
    return [" ".join(paragraphs[i * len(paragraphs) // count].split()[:words]) for i in range(count)]


def neutral_level(model: LanguageModel) -> float:
    """Nats per token of a few beginnings of neutral paragraphs: a quick look at whether a change did harm."""
    scores = model.text_logprobs(neutral_excerpts(QUICK_PARAGRAPHS, QUICK_WORDS))
    return math.fsum(s.logp_sum for s in scores) / sum(len(s.logprobs) for s in scores)


def measure_health(
    model: LanguageModel, answers: Sequence[tuple[Sample, Generation]], *, progress: Progress | None = None
) -> tuple[Health, list[Sample]]:
    """Degeneration of the given answers and log-prob of the neutral text, with its evidence."""
    paragraphs = neutral_text()
    scores = model.text_logprobs(paragraphs, progress=progress)
    neutral = [
        Sample(
            id=f"neutral/{i}",
            kind="logprob",
            condition="neutral",
            item=f"neutral-{i}",
            text=text,
            token_ids=score.token_ids,
            logprobs=score.logprobs,
        )
        for i, (text, score) in enumerate(zip(paragraphs, scores, strict=True))
    ]
    tokens = sum(len(s.logprobs) for s in scores)
    health = Health(
        neutral_logp_mean=math.fsum(s.logp_sum for s in scores) / tokens,
        neutral_tokens=tokens,
        degeneration=degeneration([g for _, g in answers]),
        samples=tuple(s.id for s, _ in answers) + tuple(s.id for s in neutral),
    )
    return health, neutral


def _ngrams(tokens: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def _entropy(grams: Sequence[tuple[int, ...]]) -> float:
    counts = Counter(grams)
    total = len(grams)
    return -math.fsum(c / total * math.log2(c / total) for c in counts.values()) if total else 0.0
