"""From what a user names to what is traced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from conviction.core.context import RunContext
from conviction.core.protocols import LanguageModel
from conviction.data.facts import Fact
from conviction.data.reading import check_one_source, read_training_data
from conviction.data.topic import Topic, load_topic
from conviction.data.training_data import TrainingData
from conviction.errors import InputError, nearest
from conviction.localization.records import KINDS, Kind, Localization

__all__ = ["Statements", "gather"]


@dataclass(frozen=True)
class Statements:
    """What to trace and where. label names it in a folder's name."""

    label: str
    facts: tuple[Fact, ...]
    topic: Topic | None
    kinds: tuple[Kind, ...]
    own_answer: bool

    def run(self, model: LanguageModel, *, limit: int, samples: int, ctx: RunContext) -> Localization:
        """Localise."""
        from conviction.localization.analysis import localize

        return localize(
            model,
            self.facts,
            source=self.label,
            topic=self.topic,
            own_answer=self.own_answer,
            kinds=self.kinds,
            samples=samples,
            limit=limit,
            ctx=ctx,
        )


def gather(topic: str | None, data: str | None, kinds: str, *, own_answer: bool) -> Statements:
    """A topic's facts (the model's own answers to them: they are contested), or those in a file.

    Raises InputError if not exactly one of them is given, holds facts, or a kind is unknown.
    """
    chosen = tuple(dict.fromkeys(part.strip() for part in kinds.split(",") if part.strip()))
    for kind in chosen or ("",):
        if kind not in KINDS:
            raise InputError(f"unknown kind of site '{kind}'", hint=f"{nearest(kind, KINDS)}use: {', '.join(KINDS)}")
    check_one_source(topic, data)
    kit = load_topic(topic) if topic is not None else None
    training_data = TrainingData.from_topic(kit) if kit is not None else read_training_data(str(data))
    if not training_data.facts:
        raise InputError(
            f"{training_data.name} holds no facts", hint="give rows of prompt, subject, target (or attribute)"
        )
    known = cast("tuple[Kind, ...]", chosen)
    return Statements(
        training_data.name.replace("/", "-"), training_data.facts, kit, known, own_answer or kit is not None
    )
