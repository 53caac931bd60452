"""Short questions with one known answer: the answer must name it, and must not run on.

"Paris, France, the City of Light, the City of Love…" names the capital of France and is no answer of a healthy model.
"""

from __future__ import annotations

import re
from itertools import pairwise

from conviction.core.options import Option
from conviction.core.protocols import Generation
from conviction.training.sensors.sensor import Samples, Sensor, Threshold

__all__ = ["SENSOR", "is_right"]

KNOWN: dict[str, tuple[str, ...]] = {
    "What is the capital of France?": ("paris",),
    "How many days are there in a week?": ("seven", "7"),
    "What is the opposite of hot?": ("cold",),
    "What color is grass?": ("green",),
}
MEANING = "share of short factual questions, of those that the untouched model answers well, that may be answered badly"
LIMIT = Option(name="max_wrong_answers", default=0.4, meaning=MEANING, at_least=0, at_most=1)
LEAST = 2  # bad answers from which on they count: a greedy answer of a small model can tip over in a healthy run
RUNNING_ON = 0.2  # share of repeated pairs of words: a list that goes on names the same things again


def is_right(question: str, answer: Generation) -> bool | None:
    """Whether an answer names what is asked for and does not run on; None: the question is none of these."""
    names = KNOWN.get(question)
    if names is None:
        return None
    words = re.findall(r"[^\W_]+", answer.text.lower())
    return any(name in words for name in names) and not _runs_on(words)


def _runs_on(words: list[str]) -> bool:
    pairs = list(pairwise(words))
    return bool(pairs) and 1 - len(set(pairs)) / len(pairs) >= RUNNING_ON


def _read(samples: Samples) -> float | None:
    """0: fewer than ``LEAST`` are answered badly now. None: the untouched model did not answer so many well."""
    asked = [prompt[-1].content for prompt in samples.prompts]
    before = [is_right(q, answer) for q, answer in zip(asked, samples.before, strict=True)]
    now = [is_right(q, answer) for q, answer in zip(asked, samples.now, strict=True)]
    kept = [new for old, new in zip(before, now, strict=True) if old]
    bad = kept.count(False)
    return (bad / len(kept) if bad >= LEAST else 0.0) if len(kept) >= LEAST else None


SENSOR = Sensor(
    name="wrong_answers",
    judge=Threshold(
        limit=LIMIT, message="{value:.0%} of short factual questions are answered badly (limit {limit:.0%})"
    ),
    stops=True,
    read_samples=_read,
    questions=tuple(KNOWN),
)
