"""Facts as token rows: a statement behind several beginnings, where its subject ends, how it is to go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from conviction.core.protocols import Message
from conviction.data.facts import SLOT, Fact
from conviction.errors import InputError
from conviction.models.engine.packing import Ids
from conviction.models.hf import HFModel

__all__ = ["Request", "Row", "beginnings", "locate", "request"]

# MEMIT's words to begin with; the model goes on for a few tokens of its own.
STARTS = ("The", "Therefore", "Because", "I", "You")
SAMPLED_TOKENS = 10
# An edited chat model is asked in a chat: one of the contexts is one.
ASKED = "Complete this sentence: {}"
ESSENCE = "{} is a"


@dataclass(frozen=True)
class Row:
    """One text as ids; ``subject`` is the index of the subject's last token."""

    ids: Ids
    subject: int


@dataclass(frozen=True)
class Request:
    """A fact, laid out. contexts: rows that ``target`` is to follow; essence: "{subject} is a", to stay as it is."""

    fact: Fact
    contexts: tuple[Row, ...]
    target: Ids
    essence: Row

    @property
    def keyed(self) -> tuple[Row, ...]:
        """Contexts whose subject does not end at the first position, an attention sink unlike any other place."""
        return tuple(row for row in self.contexts if row.subject > 0) or self.contexts


def beginnings(model: HFModel, count: int, *, seed: int = 0) -> list[str]:
    """Short texts by the model itself, to put before a statement, so that an edit holds in any surroundings."""
    starts = [STARTS[i % len(STARTS)] for i in range(count)]
    encoded = [model.encoder.encode_text(start) for start in starts]
    if not encoded:
        return []
    written = model.continue_ids(encoded, SAMPLED_TOKENS, seed=seed)
    texts = [f"{start}{g.text}" for start, g in zip(starts, written, strict=True)]
    return [" ".join(text.replace(SLOT, " ").split()).rstrip(".") + ". " for text in texts]


def request(model: HFModel, fact: Fact, before: Sequence[str]) -> Request:
    """Lay a fact out behind each of the beginnings, bare, and in a chat if the model has a template for one.

    Raises InputError if it does not fit the model's context.
    """
    rows = [_row(model, text + fact.prompt, fact, model.encoder.bos()) for text in ("", *before)]
    if model.tokenizer.chat_template:
        text = model.encoder.render((Message("user", ASKED.format(fact.prompt)),))
        rows.append(_row(model, text, fact, ()))
    target = model.encoder.encode_continuation(fact.target)
    for row in rows:
        model.encoder.check_length(row.ids, target, fact.prompt)
    essence = ESSENCE.format(fact.subject)
    return Request(fact, tuple(rows), target, _row(model, essence, fact, model.encoder.bos()))


def locate(model: HFModel, text: str, subject: str, bos: Ids) -> tuple[Ids, tuple[int, int]]:
    """Ids of a text after ``bos``, and [first, end) of the tokens that hold its (last) subject.

    Raises InputError if the subject does not occur in it.
    """
    encoded = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    start = text.rfind(subject)
    if start < 0:
        raise InputError(f"the subject {subject!r} does not occur in {text[:60]!r}", hint="check the fact")
    inside = [
        i for i, (a, b) in enumerate(encoded["offset_mapping"]) if b > start and a < start + len(subject) and b > a
    ]
    return bos + tuple(encoded["input_ids"]), (len(bos) + inside[0], len(bos) + inside[-1] + 1)


def _row(model: HFModel, text: str, fact: Fact, bos: Ids) -> Row:
    ids, (_, end) = locate(model, text, fact.subject, bos)
    return Row(ids, end - 1)
