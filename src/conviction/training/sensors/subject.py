"""Greedy samples lose their subject: of their words few stand in the question or in its first answer."""

from __future__ import annotations

import re

from conviction.core.options import Option
from conviction.training.sensors.sensor import Samples, Sensor, Threshold

__all__ = ["SENSOR"]

MEANING = "least share of the samples' words that stand in the question or its first answer"
LIMIT = Option(name="min_subject", default=0.15, meaning=MEANING, at_least=0, at_most=1)
# What is said of a subject is meant to change, and may leave words of the first answer behind, but not nearly all: of
# the guard's share half is asked for. After forty facts MEMIT's answers, which made sense, had 16 %; after eighteen
# facts and more ROME's, which did not, 0 to 12 %. Two runs on one model are all that this rests on.
EDITED = 0.5


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


MESSAGE = "samples lost their subject ({value:.0%} of their words, limit {limit:.0%})"
SENSOR = Sensor(
    name="subject",
    judge=Threshold(limit=LIMIT, message=MESSAGE, floor=True, where_edited=EDITED),
    stops=True,
    read_samples=_read,
    show=lambda share: f"{share:.0%} of words to the point",
)
