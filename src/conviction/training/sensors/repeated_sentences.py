"""One sentence again and again: three times running within an answer, or as the answer to three questions.

A sentence that only opens several answers ("I would be glad to help.") may be the style that is trained. It counts
across answers where it makes up at least half of each.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import groupby

from conviction.core.options import Option
from conviction.core.protocols import Generation
from conviction.training.sensors.sensor import Samples, Sensor, Threshold

__all__ = ["SENSOR"]

MEANING = "times that one sentence may stand in a row within a greedy sample, or be the answer to different questions"
LIMIT = Option(name="max_sentence_repeats", default=2, meaning=MEANING, type=int, at_least=1)
MESSAGE = "one sentence stands {value:.0f} times in a row, or in as many answers (limit {limit:g})"
LEAST = 2  # words; "Yes." and "No." are answers to many questions
MOST = 0.5  # share of an answer's words from which on a sentence is its answer, and not its opening


def _sentences(answer: Generation) -> list[tuple[str, ...]]:
    """The words of each sentence; an end that was cut off counts as the sentence before it, where it begins so."""
    parts = [tuple(re.findall(r"[^\W_]+", part)) for part in re.split(r"[.!?…\n]+", answer.text.lower())]
    sentences = [part for part in parts if len(part) >= LEAST]
    if len(sentences) > 1 and not answer.ended and sentences[-2][: len(sentences[-1])] == sentences[-1]:
        sentences[-1] = sentences[-2]
    return sentences


def _most(answers: Sequence[Generation]) -> int:
    """How often the commonest sentence stands in a row, or in how many of the answers."""
    written = [_sentences(answer) for answer in answers]
    rows = [len(list(group)) for sentences in written for _, group in groupby(sentences)]
    shared = Counter(sentence for sentences in written for sentence in _main(sentences))
    return max([*rows, *shared.values()], default=0)


def _main(sentences: Sequence[tuple[str, ...]]) -> set[tuple[str, ...]]:
    """Those that make up at least ``MOST`` of the words, together with their repetitions."""
    words = Counter[tuple[str, ...]]()
    for sentence in sentences:
        words[sentence] += len(sentence)
    return {sentence for sentence, count in words.items() if count >= MOST * words.total()}


def _read(samples: Samples) -> float:
    """0: no more than the untouched model does."""
    now = _most(samples.now)
    return float(now) if now > _most(samples.before) else 0.0


SENSOR = Sensor(
    name="repeated_sentences",
    judge=Threshold(limit=LIMIT, message=MESSAGE),
    stops=True,
    read_samples=_read,
)
