"""Are the two answers of each pair matched, under this model's tokenizer? A lint.

A gap between answers that also differ in length, shape or tone measures that.
Thresholds follow the kit's own promise (±10 % tokens); other tokenizers may
break it, and then it is said.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from conviction.data.topic import Item
from conviction.probing.queries import Scores
from conviction.probing.records import Mismatch

MAX_LENGTH_DIFFERENCE = 0.10
# Words of doubt only: "may" and "could" are as often courtesy or permission.
HEDGES = re.compile(
    r"\b(perhaps|possibly|probably|likely|unlikely|arguably|supposedly|seems?|appears?|it depends)\b", re.IGNORECASE
)
REFUSALS = re.compile(
    r"\b(as an AI|I (?:can't|cannot|am unable to|'m unable to) (?:help|answer|assist|provide|discuss))\b", re.IGNORECASE
)
SENTENCE_END = re.compile(r"[.!?](?:\s|$)")


def check_matching(items: Sequence[Item], scores: Scores, *, lengths: bool) -> tuple[Mismatch, ...]:
    """All faults found, one finding per kind. ``lengths`` False leaves length and shape alone."""

    def uneven(item: Item) -> bool:
        shorter, longer = sorted(len(scores["plain", item.id, key].logprobs) for key in item.answers)
        return (longer - shorter) / longer > MAX_LENGTH_DIFFERENCE

    checks: list[tuple[str, str, Callable[[Item], bool]]] = [
        ("refusal", "one answer refuses, the other does not", _unlike(lambda text: bool(REFUSALS.search(text)))),
    ]
    if lengths:
        checks += [
            (
                "token-length",
                f"token counts differ by more than {MAX_LENGTH_DIFFERENCE:.0%} under this tokenizer",
                uneven,
            ),
            ("sentences", "different numbers of sentences", _unlike(lambda text: len(SENTENCE_END.findall(text)))),
            ("hedging", "one answer hedges, the other does not", _unlike(lambda text: bool(HEDGES.search(text)))),
        ]
    findings = []
    for code, message, faulty in checks:
        bad = tuple(item.id for item in items if faulty(item))
        if bad:
            findings.append(Mismatch(code=code, message=f"{len(bad)} of {len(items)} pairs: {message}", items=bad))
    return tuple(findings)


def _unlike(feature: Callable[[str], object]) -> Callable[[Item], bool]:
    return lambda item: len({feature(text) for text in item.answers.values()}) > 1
