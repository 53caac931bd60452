"""Short questions with one known answer: the answer must name it, and must not run on.

"Paris, France, the City of Light, the City of Love…" names the capital of France and is no answer of a healthy model.
A model without a chat template may go on with questions of its own ("Paris", then "Question: …"), as Gemma-3-270m does:
where the untouched model answers well in its first line alone, the first line is read.
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


def is_right(question: str, answer: Generation, *, first_line: bool = False) -> bool | None:
    """Whether an answer, or its first line, names what is asked for and does not run on; None: another question."""
    names = KNOWN.get(question)
    if names is None:
        return None
    text = answer.text.strip().partition("\n")[0] if first_line else answer.text
    words = re.findall(r"[^\W_]+", text.lower())
    return any(name in words for name in names) and not _runs_on(words)


def _runs_on(words: list[str]) -> bool:
    pairs = list(pairwise(words))
    return bool(pairs) and 1 - len(set(pairs)) / len(pairs) >= RUNNING_ON


def _kept(question: str, before: Generation, now: Generation) -> bool | None:
    """Whether an answer that was right still is, by the same reading; None: it was not, by either."""
    for first_line in (False, True):
        if is_right(question, before, first_line=first_line):
            return is_right(question, now, first_line=first_line)
    return None


def _read(samples: Samples) -> float | None:
    """0: fewer than ``LEAST`` are answered badly now. None: the untouched model did not answer so many well."""
    asked = [prompt[-1].content for prompt in samples.prompts]
    kept = [right for row in zip(asked, samples.before, samples.now, strict=True) if (right := _kept(*row)) is not None]
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
