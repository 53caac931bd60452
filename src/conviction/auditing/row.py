"""A row as rules see it, with what several of them want to know, computed once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import xxhash

from conviction.auditing.surface import Surface, surface
from conviction.core.protocols import PairScore
from conviction.data.assembly import is_transcript
from conviction.data.columns import SCORES, Layout
from conviction.data.training_data import PreferencePair


@dataclass(frozen=True)
class AuditRow:
    """One row.

    number    its line, or its place counted from 1
    pair      None: the row cannot be used, ``problem`` and ``hint`` say why
    measured  None: no model was asked
    layout    how its columns are read; record: its place in a CSV with cells of several lines, else 0
    """

    number: int
    fields: Mapping[str, Any]
    pair: PreferencePair | None
    form: str = ""
    problem: str = ""
    hint: str = ""
    measured: PairScore | None = None
    layout: Layout = field(default_factory=Layout)
    record: int = 0

    @property
    def chosen(self) -> str:
        """The better answer."""
        return self._pair.chosen

    @property
    def rejected(self) -> str:
        """The worse answer."""
        return self._pair.rejected

    @property
    def sides(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """Both answers with their names."""
        return ("chosen", self._pair.chosen), ("rejected", self._pair.rejected)

    @property
    def texts(self) -> list[tuple[str, str]]:
        """Both answers and every turn of the prompt, each with its place."""
        return [*self.sides, *(("prompt", message.content) for message in self._pair.messages)]

    @property
    def question(self) -> str:
        """The last thing that the user says."""
        return self._pair.messages[-1].content

    @cached_property
    def prompt_key(self) -> int:
        """Equal for equal conversations."""
        return _key("\x1f".join(m.content.strip() for m in self._pair.messages))

    @cached_property
    def answer_keys(self) -> tuple[int, int]:
        """Of chosen and rejected, but for the spaces around them."""
        return _key(self.chosen.strip()), _key(self.rejected.strip())

    @property
    def pair_key(self) -> int:
        """Equal for equal pairs."""
        return hash((self.prompt_key, *self.answer_keys))

    @cached_property
    def surfaces(self) -> tuple[Surface, Surface]:
        """Shallow features of chosen and of rejected."""
        return surface(self.chosen), surface(self.rejected)

    @property
    def scores(self) -> PairScore:
        """What the model says of the pair."""
        assert self.measured is not None, "rules that need it see measured rows only"  # noqa: S101
        return self.measured

    @property
    def given_scores(self) -> tuple[float, float] | None:
        """What somebody gave chosen and rejected, in the columns for it; None: nothing."""
        try:
            chosen, rejected = (float(self.fields[self.layout.column(name)]) for name in SCORES)
        except (KeyError, TypeError, ValueError):
            return None
        return chosen, rejected

    @property
    def _pair(self) -> PreferencePair:
        assert self.pair is not None, "unusable rows are seen by rules that ask for them only"  # noqa: S101
        return self.pair


def form_of(fields: Mapping[str, Any]) -> str:
    """How a usable row is written: as texts, messages or transcripts, and whether without a prompt of its own."""
    sides = fields["chosen"], fields["rejected"]
    form = "messages"
    if isinstance(sides[0], str):
        form = "transcripts" if any(map(is_transcript, sides)) else "texts"
    return form if fields.get("prompt") is not None else f"{form} without prompt"


def _key(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode())


def normal(text: str) -> str:
    """Without what a reader would not notice: case, and how wide a space is."""
    return " ".join(text.casefold().split())


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """Shared words of all words; 0 if there are none."""
    return len(a & b) / max(1, len(a | b))


def shown(text: str, width: int = 80) -> str:
    """The beginning of a text on one line, for evidence."""
    flat = " ".join(text.split())
    return flat if len(flat) <= width else flat[: width - 1] + "…"
