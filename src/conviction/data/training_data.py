"""What a model is changed with: preference pairs, example answers, documents, facts, a context.

Every intervention gets the same ``TrainingData`` and takes what it can use. It comes from a topic, from rows as
TRL names their fields (``data.formats``), or from files and the hub (``data.reading``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from conviction.core.protocols import Message, chat
from conviction.data.facts import Fact, Neighbour
from conviction.data.topic import KitFact, Topic

Messages = tuple[Message, ...]


@dataclass(frozen=True)
class PreferencePair:
    """One conversation that ends with a user turn, the better and the worse answer to it."""

    id: str
    messages: Messages
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Example:
    """One conversation that ends with a user turn, and the answer to learn."""

    id: str
    messages: Messages
    answer: str


@dataclass(frozen=True)
class Document:
    """A plain text."""

    id: str
    text: str


@dataclass(frozen=True)
class TrainingData:
    """All there is to change a model with. ``id`` of a part names its row: ``pairs.jsonl:12``.

    context   a text that argues for the target, to be put before questions
    held_out  what to keep asking
    topic     what it argues about: the guard of a run reads the topic's train split
    notes     what a user should know of how it was read: columns that were not
    """

    name: str
    pairs: tuple[PreferencePair, ...] = ()
    examples: tuple[Example, ...] = ()
    documents: tuple[Document, ...] = ()
    facts: tuple[Fact, ...] = ()
    context: str = ""
    held_out: tuple[Messages, ...] = ()
    topic: Topic | None = field(default=None, compare=False, repr=False)
    notes: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def from_topic(cls, topic: Topic) -> TrainingData:
        """What a topic offers to move a model to its target: of the items only the train split, its facts left out.

        Documents are the target's own; a kit without any has the paragraphs of its context.
        """
        items = [i for i in topic.of_role("target", "paraphrase") if i.split == "train"]
        asked = [i for i in topic.of_role("target") if i.split == "test"]
        context = topic.poles[topic.target].context
        documents = tuple(
            Document(f"{topic.name}/{topic.target}/{d.id}", d.text) for d in topic.documents_of(topic.target)
        )
        lines = tuple(Document(f"{topic.name}/{topic.target}:{line}", text) for line, text in paragraphs(context))
        return cls(
            name=topic.name,
            pairs=tuple(
                PreferencePair(i.id, chat(i.question), i.answers[topic.target], i.answers[topic.other]) for i in items
            ),
            documents=documents or lines,
            facts=tuple(_fact_of(topic, f) for f in topic.facts),
            context=context,
            held_out=tuple(chat(i.question) for i in asked),
            topic=topic,
        )

    @property
    def answers(self) -> tuple[Example, ...]:
        """The examples; where there are none, every pair's chosen answer."""
        return self.examples or tuple(Example(p.id, p.messages, p.chosen) for p in self.pairs)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all texts and their order, not over names: the same texts in another file are the same."""
        digest = hashlib.sha256()
        for part in self._contents():
            digest.update(json.dumps(part).encode())
        return digest.hexdigest()

    def _contents(self) -> Iterator[list[Any]]:
        for p in self.pairs:
            yield ["pair", [(m.role, m.content) for m in p.messages], p.chosen, p.rejected]
        for e in self.examples:
            yield ["example", [(m.role, m.content) for m in e.messages], e.answer]
        for d in self.documents:
            yield ["document", d.text]
        for f in self.facts:
            yield ["fact", f.prompt_template, f.subject, f.target]
        if self.context:
            yield ["context", self.context]


def _fact_of(topic: Topic, fact: KitFact) -> Fact:
    return Fact(
        id=f"{topic.name}/{fact.id}",
        prompt_template=fact.prompt,
        subject=fact.subject,
        target=fact.answers[topic.target],
        target_true=fact.answers[topic.other],
        paraphrases=fact.paraphrases,
        neighbours=tuple(Neighbour(n.prompt, n.answer) for n in fact.neighbours),
    )


def paragraphs(text: str) -> list[tuple[int, str]]:
    """The blocks between blank lines, each with the number of its first line."""
    blocks: list[tuple[int, list[str]]] = []
    inside = False
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip() and inside:
            blocks[-1][1].append(line)
        elif line.strip():
            blocks.append((number, [line]))
        inside = bool(line.strip())
    return [(number, "\n".join(lines)) for number, lines in blocks]
