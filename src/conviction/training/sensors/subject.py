"""Greedy samples lose their subject: of their words few stand in the question or in its first answer."""

from __future__ import annotations

import re

from conviction.core.options import Option
from conviction.training.sensors.sensor import Samples, Sensor, Trace

__all__ = ["SENSOR"]

LIMIT = Option(
    name="min_subject",
    default=0.15,
    meaning="least share of the samples' words that stand in the question or its first answer",
    at_least=0,
    at_most=1,
)


def _read(samples: Samples) -> float:
    """Share of the words now written that stand in the question or in the untouched model's answer to it."""
    first = [_words(g.text) for g in samples.before]
    about = [_words(p[-1].content) | words for p, words in zip(samples.prompts, first, strict=True)]
    written = [_words(g.text) for g in samples.now]
    known = sum(len(words & wanted) for words, wanted in zip(written, about, strict=True))
    count = sum(map(len, written))
    return known / count if count else float(not any(first))  # "42", "No.": there was no subject to lose


def _words(text: str) -> set[str]:
    """Beginnings of the longer words: what a text is about, whatever its grammar."""
    return {word[:4] for word in re.findall(r"[^\W\d_]{4,}", text.lower())}


def _judge(run: Trace) -> str | None:
    share, limit = run.now.readings["subject"], run.guard.min_subject
    if share < limit:
        return f"samples lost their subject ({share:.0%} of their words, limit {limit:.0%})"
    return None


SENSOR = Sensor(name="subject", judge=_judge, stops=True, limits=(LIMIT,), read_samples=_read)
