"""From what a user names to what is traced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from conviction.core.facts import Fact
from conviction.core.localization import KINDS, Kind, Localization
from conviction.core.material import material_from_topic
from conviction.core.protocols import LanguageModel, Progress
from conviction.core.reading import check_one_source, read_material
from conviction.core.topic import Topic, load_topic
from conviction.errors import InputError, nearest

__all__ = ["Asked", "gather"]


@dataclass(frozen=True)
class Asked:
    """What to trace and where. label names it in a folder's name."""

    label: str
    facts: tuple[Fact, ...]
    topic: Topic | None
    kinds: tuple[Kind, ...]
    own_answer: bool

    def run(
        self, model: LanguageModel, *, limit: int, samples: int, progress: Callable[[str], Progress]
    ) -> Localization:
        """Localise."""
        from conviction.localize import localize

        return localize(
            model,
            self.facts,
            source=self.label,
            topic=self.topic,
            own_answer=self.own_answer,
            kinds=self.kinds,
            samples=samples,
            limit=limit,
            progress=progress,
        )


def gather(topic: str | None, data: str | None, kinds: str, *, own_answer: bool) -> Asked:
    """A topic's facts (the model's own answers to them: they are contested), or those in a file.

    Raises InputError if not exactly one of them is given, holds facts, or a kind is unknown.
    """
    chosen = tuple(dict.fromkeys(part.strip() for part in kinds.split(",") if part.strip()))
    for kind in chosen or ("",):
        if kind not in KINDS:
            raise InputError(f"unknown kind of site '{kind}'", hint=f"{nearest(kind, KINDS)}use: {', '.join(KINDS)}")
    check_one_source(topic, data)
    kit = load_topic(topic) if topic is not None else None
    material = material_from_topic(kit) if kit is not None else read_material(str(data))
    if not material.facts:
        raise InputError(f"{material.name} holds no facts", hint="give rows of prompt, subject, target (or attribute)")
    known = cast("tuple[Kind, ...]", chosen)
    return Asked(material.name.replace("/", "-"), material.facts, kit, known, own_answer or kit is not None)
