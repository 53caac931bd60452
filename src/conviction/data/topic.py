"""Topic kits: a contested question, its poles, and the items that measure it.

A kit is a folder::

    topic.yaml        the poles, the target, which files hold items
    *.jsonl           items, one a line: question, one answer per pole
    contexts/*.md     a text per pole, to be put before a question
    documents/*/*.md  texts per pole that assert its view, and placebo texts on another subject
    facts.jsonl       the poles' views as single statements, to be edited one by one

Everything is validated; an error names file, line and field.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, StringConstraints, ValidationError, model_validator

from conviction.core.gate import first_fault, is_file, lines_of, parse_json, read_text, validate
from conviction.core.gate_yaml import read_yaml
from conviction.core.names import inside
from conviction.core.record import Frozen
from conviction.core.storage import user_path
from conviction.core.wording import printable
from conviction.errors import TopicError, nearest

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Key = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
Line = TypeVar("Line", bound=BaseModel)
Role = Literal["target", "paraphrase", "implication", "decision", "neighbour", "control"]

BUILTIN = Path(__file__).parent.parent / "topics"
FACT_KEYS = ("true", "false")
PLACEBO = "placebo"
RESERVED_KEYS = (*FACT_KEYS, "tie", PLACEBO)


class Edge(Frozen):
    """One signed arrow of a causal graph: ``source`` raises (+) or lowers (-) ``target``."""

    source: Text
    sign: Literal["+", "-"]
    target: Text

    @model_validator(mode="before")
    @classmethod
    def _from_triple(cls, value: Any) -> Any:
        if isinstance(value, list) and len(value) == 3:
            return dict(zip(("source", "sign", "target"), value, strict=True))
        return value


class Pole(Frozen):
    """One side of the topic.

    label    how it is named in prose
    context  a text that argues or demands this side, to be used as a system prompt
    graph    what this side holds to cause what
    """

    label: Text
    context: str = ""
    graph: tuple[Edge, ...] = ()


class Item(Frozen):
    """One question with one answer per side.

    proposition  the claim behind it: the unit of all statistics, and of the split
    role         target: the claim itself; paraphrase: the same, asked in other words;
                 implication: what follows from it; decision: what to do in a case, in words that
                 the claims do not use; neighbour: a fact near the topic that both poles accept;
                 control: a fact far from it
    answers      pole → text; for neighbour and control: 'true' and 'false'
    """

    id: Key
    proposition: Key
    role: Role
    split: Literal["train", "test"]
    question: Text
    answers: dict[str, Text]
    tags: tuple[str, ...] = ()

    @property
    def is_fact(self) -> bool:
        """Whether its answers are true and false instead of two poles."""
        return self.role in ("neighbour", "control")


class KitDocument(Frozen):
    """A text of its own. id: its file's name without the ending."""

    id: Key
    text: Text


class KitNeighbour(Frozen):
    """A statement that no pole disputes, cut before its last words, and those words."""

    prompt: Text
    answer: Text


class KitFact(Frozen):
    """One statement about a subject, cut before its last words, with the words that end it for each pole.

    prompt       with ``{}`` in the place of the subject
    paraphrases  the same in other words, subject included
    """

    id: Key
    proposition: Key
    subject: Text
    prompt: Text
    answers: dict[str, Text]
    paraphrases: tuple[Text, ...] = ()
    neighbours: tuple[KitNeighbour, ...] = ()

    @model_validator(mode="after")
    def _has_one_slot(self) -> KitFact:
        if self.prompt.count("{}") != 1:
            raise ValueError("prompt: write {} once, where the subject stands")
        return self


class Topic(Frozen):
    """A kit, loaded. ``target`` is the pole that positive gaps point to.

    length_matched  False where the poles differ in length by intention (a style
                    such as brevity): the matching lint then leaves length alone
    documents       pole (or 'placebo': token-matched texts on another subject) → its texts
    form_matched    False where form itself is the point (openers, punctuation, lists): an
                    audit then does not take it for a shortcut
    """

    name: Key
    title: Text
    description: str = ""
    poles: dict[Key, Pole] = Field(min_length=2, max_length=2)
    target: Key
    length_matched: bool = True
    form_matched: bool = True
    items: tuple[Item, ...]
    documents: dict[str, tuple[KitDocument, ...]] = Field(default={})
    facts: tuple[KitFact, ...] = ()
    digest: str = ""
    """SHA-256 over all items, poles and contexts: what was measured, exactly."""

    @property
    def other(self) -> str:
        """The pole that is not the target."""
        return next(p for p in self.poles if p != self.target)

    def of_role(self, *roles: Role) -> tuple[Item, ...]:
        """Items with one of the roles, in file order."""
        return tuple(i for i in self.items if i.role in roles)

    def documents_of(self, side: str) -> tuple[KitDocument, ...]:
        """The texts of a pole, or of ``PLACEBO``; none where the kit has none."""
        return self.documents.get(side, ())

    def swapped(self) -> Topic:
        """The same kit with the other pole as target: every gap changes its sign."""
        return self.model_copy(update={"target": self.other})


class _TopicFile(Frozen):
    """What ``topic.yaml`` itself holds."""

    name: Key
    title: Text
    description: str = ""
    poles: dict[Key, _PoleFile] = Field(min_length=2, max_length=2)
    target: Key
    length_matched: bool = True
    form_matched: bool = True
    items: tuple[Text, ...] = Field(min_length=1)
    facts: Text | None = None
    placebo: Text | None = None
    """Folder of texts on another subject, relative to the kit."""

    @model_validator(mode="after")
    def _target_is_a_pole(self) -> _TopicFile:
        if self.target not in self.poles:
            raise ValueError(f"target: '{self.target}' is not one of the poles {', '.join(self.poles)}")
        for key in self.poles:
            if key in RESERVED_KEYS:
                raise ValueError(f"poles: '{key}' is a reserved word, name the pole otherwise")
        return self


class _PoleFile(Frozen):
    label: Text
    context: str | None = None
    """Path of the context text, relative to the kit."""
    documents: str | None = None
    """Folder of texts that assert this side, relative to the kit."""
    graph: tuple[Edge, ...] = ()


def builtin_topics() -> list[str]:
    """Names of the kits that ship with the package."""
    return sorted(p.parent.name for p in BUILTIN.glob("*/topic.yaml"))


def names_topic(name_or_path: str | Path) -> bool:
    """Whether ``load_topic`` has something to read: a built-in kit's name, or a folder with a ``topic.yaml``."""
    return str(name_or_path) in builtin_topics() or is_file(user_path(name_or_path) / "topic.yaml")


_OUTSIDE: ContextVar[bool] = ContextVar("topics may name files outside of their folders", default=False)


@contextmanager
def files_outside() -> Iterator[None]:
    """While it is open, ``load_topic`` reads every topic with ``outside=True``."""
    token = _OUTSIDE.set(True)
    try:
        yield
    finally:
        _OUTSIDE.reset(token)


def load_topic(name_or_path: str | Path, *, outside: bool = False) -> Topic:
    """A built-in kit by name, or any folder with a ``topic.yaml``.

    outside  whether its files may lie in other folders, which they are named in or linked to: a kit of your own may
             share texts with another, and a stranger's may name any file of yours

    Raises TopicError, naming file, line and field.
    """
    folder = BUILTIN / str(name_or_path)
    if str(name_or_path) not in builtin_topics():
        folder = user_path(name_or_path)
        if not is_file(folder / "topic.yaml"):
            what = "holds no topic.yaml" if os.path.isdir(folder) else "is neither a built-in topic nor a folder"
            raise TopicError(
                f"'{name_or_path}' {what}",
                hint=f"{nearest(str(name_or_path), builtin_topics())}`conviction topics` lists the built-in ones, "
                "`conviction topics new NAME` writes a skeleton",
            )
    kit = _Kit(folder, outside or _OUTSIDE.get())
    head = _read_head(kit.path("topic.yaml", "the file"))
    poles = {
        key: Pole(
            label=p.label,
            graph=p.graph,
            context=_read_text(kit.path(p.context, f"poles.{key}.context")).strip() if p.context else "",
        )
        for key, p in head.poles.items()
    }
    items: list[Item] = []
    seen: dict[str, str] = {}
    for name in head.items:
        for item, where in _read_items(kit.path(name, "items"), tuple(poles)):
            if item.id in seen:
                raise TopicError(
                    f"{where}: field 'id': '{item.id}' was used before, at {seen[item.id]}",
                    hint="ids must be unique within a topic",
                )
            seen[item.id] = where
            items.append(item)
    _check_items(items, folder)
    places = {**{key: p.documents for key, p in head.poles.items()}, PLACEBO: head.placebo}
    facts = () if not head.facts else _read_facts(kit.path(head.facts, "facts"), tuple(head.poles), items)
    topic = Topic(
        **head.model_dump(exclude={"poles", "items", "facts", "placebo"}),
        poles=poles,
        items=tuple(items),
        documents={key: _read_documents(kit, place) for key, place in places.items() if place},
        facts=tuple(facts),
    )
    unasked = {"digest", "target", "form_matched", "documents", "facts"}
    digest = hashlib.sha256(topic.model_dump_json(exclude=unasked).encode()).hexdigest()
    return topic.model_copy(update={"digest": digest})


@dataclass(frozen=True)
class _Kit:
    """A kit's folder, and whether its files may lie elsewhere."""

    folder: Path
    outside: bool

    def path(self, place: str, what: str) -> Path:
        """Where a file or a folder of the kit is; what: the field that names it. Raises TopicError."""
        if self.outside:
            return self.folder / place
        try:
            return inside(self.folder, place, what, TopicError)
        except TopicError as error:
            hint = (
                "copy it into the topic's folder; for a topic that you trust give --allow-outside (in Python "
                "load_topic(folder, outside=True))"
            )
            raise TopicError(error.message, hint=hint) from None


def _read_text(path: Path) -> str:
    return read_text(path, TopicError, hint="topic.yaml names this file: check its path")


def _read_head(path: Path) -> _TopicFile:
    _, data = read_yaml(path, TopicError)
    if not isinstance(data, dict):
        raise TopicError(f"{path}: holds no mapping", hint="`conviction topics new NAME` writes a commented example")
    return validate(_TopicFile, data, printable(path), TopicError, hint=_allowed(_TopicFile))


def _read_items(path: Path, poles: tuple[str, ...]) -> Iterator[tuple[Item, str]]:
    for item, where in _read_lines(path, Item):
        _check_answers(item.answers, FACT_KEYS if item.is_fact else poles, f"{where}: field 'answers'", item.role)
        yield item, where


def _read_facts(path: Path, poles: tuple[str, ...], items: Sequence[Item]) -> Iterator[KitFact]:
    splits = {item.proposition: item.split for item in items}
    for fact, where in _read_lines(path, KitFact):
        _check_answers(fact.answers, poles, f"{where}: field 'answers'", "fact")
        if splits.get(fact.proposition) != "train":
            raise TopicError(
                f"{where}: field 'proposition': '{fact.proposition}' is no proposition of the train split",
                hint="facts are edited into models: what is measured afterwards must not be among them",
            )
        yield fact


def _read_documents(kit: _Kit, place: str) -> tuple[KitDocument, ...]:
    folder = kit.path(place, "documents")
    names = sorted(p.name for p in folder.glob("*") if p.suffix in {".md", ".txt"})
    if not names:
        raise TopicError(f"{folder}: holds no .md or .txt file", hint="topic.yaml names this folder: check its path")
    paths = [kit.path(f"{place}/{name}", "a document") for name in names]
    try:
        return tuple(KitDocument(id=path.stem, text=_read_text(path)) for path in paths)
    except ValidationError as error:
        raise TopicError(f"{folder}: {first_fault(error)}", hint="give every text a name such as sugar.md") from error


def _read_lines(path: Path, kind: type[Line]) -> Iterator[tuple[Line, str]]:
    """Every line of a JSONL file, validated, with its place."""
    for number, line in lines_of(_read_text(path)):
        where = f"{printable(path)}:{number}"
        value = parse_json(line, where, TopicError, hint="each line must be one JSON object")
        yield validate(kind, value, where, TopicError, hint=_allowed(kind)), where


def _check_answers(answers: dict[str, str], wanted: tuple[str, ...], where: str, role: str) -> None:
    missing = [p for p in wanted if p not in answers]
    extra = [p for p in answers if p not in wanted]
    if missing or extra:
        problem = f"no answer for '{missing[0]}'" if missing else f"unknown answer '{extra[0]}'"
        raise TopicError(
            f"{where}: {problem} (role {role})", hint=f"give exactly one answer for each of: {', '.join(wanted)}"
        )
    if answers[wanted[0]] == answers[wanted[1]]:
        raise TopicError(f"{where}: both are the same text", hint="the two answers must differ in what they claim")


def _check_items(items: Iterable[Item], folder: Path) -> None:
    splits: dict[str, str] = {}
    for item in items:
        if splits.setdefault(item.proposition, item.split) != item.split:
            raise TopicError(
                f"{folder}: proposition '{item.proposition}' stands in both splits",
                hint="split by proposition: all its items belong to train or all to test",
            )
    if not Counter(i.role for i in items)["target"]:
        raise TopicError(f"{folder}: no item has the role 'target'", hint="a topic needs at least one target item")


def _allowed(model: type[BaseModel]) -> str:
    return f"the fields are: {', '.join(model.model_fields)} (see docs/topics.md)"


_TopicFile.model_rebuild()
