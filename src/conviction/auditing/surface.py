"""Shallow features of an answer: what can be seen without reading it. Pure functions of a text.

They feed three rules (length, format, classifier). None of them knows what a
word means, except for the openers and refusals that a reader of preference data
has learnt to see.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from conviction.core.segmentation import word_count

_BULLETS = re.compile(r"^[ \t]*(?:[-*•–]|\d{1,2}[.)])[ \t]+\S", re.MULTILINE)
_HEADING = re.compile(r"^#{1,6} \S", re.MULTILINE)
_EMPHASIS = re.compile(r"\*\*\S|__\S|\*\S[^*\n]*\S\*")
_REFUSAL = re.compile(
    r"\b(?:i(?:['’]m| am)(?: really| very| so)? sorry\b|i (?:can(?:no|['’])t|won['’]t|will not|am (?:unable|not able)"
    r"|['’]m (?:unable|not able)) |as an ai\b|i(?:['’]d| would) (?:prefer|rather) not)",
    re.IGNORECASE,
)
_OPENER = re.compile(
    r"\W*(?:sure|certainly|absolutely|of course|great question|good question|i(?:['’]m| am) happy to|happy to help"
    r"|here (?:is|are)|here['’]s|definitely|yes|no|well)\b",
    re.IGNORECASE,
)
_OPENING = 160  # characters in which a refusal shows itself


class Surface(NamedTuple):
    """Counts and marks of one answer."""

    characters: int
    words: int
    lines: int
    commas: int
    stops: int
    questions: int
    exclamations: int
    colons: int
    quotes: int
    brackets: int
    digits: int
    capitals: int
    first_person: int
    bullets: int
    heading: bool
    emphasis: bool
    code: bool
    opener: bool
    refusal: bool
    asks_back: bool
    closed: bool


MARKS = {
    "bullets": "lists",
    "heading": "headings",
    "emphasis": "bold or italic marks",
    "code": "code blocks",
    "opener": "stock openers (Sure, Of course, Here is, Yes, No …)",
    "refusal": "refusals and apologies",
    "asks_back": "a question at the end",
    "closed": "a full stop or other closing mark at the end",
}
"""Features that an answer has or has not, in words."""


def surface(text: str) -> Surface:
    """Of one answer; 10 to 20 µs for a paragraph."""
    count = text.count
    end = text.rstrip()[-1:]
    start = text[:_OPENING]
    marked = "*" in text or "_" in text
    return Surface(
        characters=len(text),
        words=word_count(text),
        lines=count("\n"),
        commas=count(",") + count("，") + count("、"),
        stops=count(".") + count("。"),
        questions=count("?") + count("？"),
        exclamations=count("!") + count("！"),
        colons=count(":") + count(";") + count("：") + count("；"),
        quotes=count('"') + count("“") + count("「"),
        brackets=count("(") + count("（"),
        digits=sum(map(count, "0123456789")),
        capitals=sum(map(str.isupper, text)),
        first_person=count("I ") + count("I'") + count("I’"),
        bullets=len(_BULLETS.findall(text)),
        heading="#" in text and _HEADING.search(text) is not None,
        emphasis=marked and _EMPHASIS.search(text) is not None,
        code="```" in text,
        opener=_OPENER.match(start) is not None,
        refusal=_REFUSAL.search(start) is not None,
        asks_back=end in {"?", "？"},
        closed=end in ".!?。！？",
    )
