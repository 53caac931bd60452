"""Forms of one question with two answers: a small model may be able to answer in one form and not in another.

question   as it stands; what counts are the log-probs of the two answers
statement  as a sentence that is to be completed, where the kit or its graph has it so
choice     both answers as options A and B, in both orders; what counts are the log-probs of the letters (the mean of
           both orders: a liking for a letter or a place cancels; Zheng et al. 2309.03882)
truth      each answer by itself: is it true or false? What counts is how much truer the one is than the other

Which form is kept is decided by a positive control on the untouched model, never by what an arm did.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from conviction.core.protocols import chat
from conviction.data.topic import Item
from conviction.probing.gaps import gap, mean
from conviction.probing.queries import ProbeQuery, Scores

CHOICE = "{question}\nA: {first}\nB: {second}\nReply with A or B."
LETTERS = ("A", "B")
TRUTH = "{question}\n{answer}\nIs that true or false?"
TRUE_FALSE = {"true": "True.", "false": "False."}


@dataclass(frozen=True)
class Form:
    """One form of question.

    queries  (condition, items, system prompt) → what is asked; conditions begin with the one given
    gap      (scores, condition, item, towards, away) → nats (per token of the answer) in favour of ``towards``
    samples  (condition, item) → the rows that the gap is computed from
    """

    queries: Callable[[str, Sequence[Item], str | None], list[ProbeQuery]]
    gap: Callable[[Scores, str, Item, str, str], float]
    samples: Callable[[str, Item], tuple[str, ...]]


def _asked(condition: str, items: Sequence[Item], system: str | None) -> list[ProbeQuery]:
    return [ProbeQuery(condition, i, chat(i.question, system=system), dict(i.answers)) for i in items]


def _asked_samples(condition: str, item: Item) -> tuple[str, ...]:
    return tuple(f"{condition}/{item.id}/{side}" for side in item.answers)


def _orders(condition: str, item: Item) -> dict[str, dict[str, str]]:
    """Condition → side → its letter, the first answer first and last."""
    one, other = item.answers
    first, second = LETTERS
    return {f"{condition}:1": {one: first, other: second}, f"{condition}:2": {other: first, one: second}}


def _choices(condition: str, items: Sequence[Item], system: str | None) -> list[ProbeQuery]:
    queries = []
    for item in items:
        for name, letters in _orders(condition, item).items():
            first, second = (item.answers[side] for side in letters)
            text = CHOICE.format(question=item.question, first=first, second=second)
            queries.append(ProbeQuery(name, item, chat(text, system=system), letters))
    return queries


def _choice_gap(scores: Scores, condition: str, item: Item, towards: str, away: str) -> float:
    return mean([gap(scores, name, item, towards, away) for name in _orders(condition, item)])


def _choice_samples(condition: str, item: Item) -> tuple[str, ...]:
    return tuple(f"{name}/{item.id}/{side}" for name, sides in _orders(condition, item).items() for side in sides)


def _truths(condition: str, items: Sequence[Item], system: str | None) -> list[ProbeQuery]:
    return [
        ProbeQuery(
            f"{condition}:{side}",
            item,
            chat(TRUTH.format(question=item.question, answer=answer), system=system),
            dict(TRUE_FALSE),
        )
        for item in items
        for side, answer in item.answers.items()
    ]


def _truth_gap(scores: Scores, condition: str, item: Item, towards: str, away: str) -> float:
    one, other = (gap(scores, f"{condition}:{side}", item, "true", "false") for side in (towards, away))
    return (one - other) / 2


def _truth_samples(condition: str, item: Item) -> tuple[str, ...]:
    return tuple(f"{condition}:{side}/{item.id}/{word}" for side in item.answers for word in TRUE_FALSE)


FORMS: dict[str, Form] = {
    "question": Form(_asked, gap, _asked_samples),
    "statement": Form(_asked, gap, _asked_samples),
    "choice": Form(_choices, _choice_gap, _choice_samples),
    "truth": Form(_truths, _truth_gap, _truth_samples),
}
