"""A model that reads something before every conversation: its weights stay, its prompt changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field

from conviction.core.protocols import AnswerScore, Generation, LanguageModel, Message, Progress, Query
from conviction.models.saved import fields_of, save_moved

Messages = tuple[Message, ...]


class PromptTransform(Protocol):
    """From the conversation that was asked to the one that the model reads."""

    def apply(self, conversations: Sequence[Messages]) -> list[Messages]:
        """One for each, in order; the same conversation always becomes the same."""

    def sources(self, messages: Messages) -> tuple[str, ...]:
        """Ids of the texts that were put before it."""

    def describe(self) -> dict[str, Any]:
        """Provenance."""

    def save(self, folder: Path) -> tuple[str, dict[str, Any]]:
        """Write what is its own into ``folder``; its kind and fields for the folder's record."""


@dataclass(frozen=True)
class PromptedModel:
    """A ``LanguageModel`` around another: conversations are rewritten, everything else is the inner one's.

    Long common contexts cost one prefill: the inner model packs what its
    prompts share (``models.packing``). Plain texts have no prompt and stay as they are.

    source  the folder that it was loaded from or saved to
    """

    id: str
    inner: LanguageModel
    transform: PromptTransform
    source: str | None = None

    def logprobs(
        self, queries: Sequence[Query], *, progress: Progress | None = None, fresh: bool = False
    ) -> list[list[AnswerScore]]:
        """Scores of the answers after the rewritten conversations."""
        read = self.transform.apply([q.messages for q in queries])
        asked = [Query(messages, q.answers) for messages, q in zip(read, queries, strict=True)]
        return self.inner.logprobs(asked, progress=progress, fresh=fresh)

    def generate(
        self,
        prompts: Sequence[Messages],
        *,
        max_new_tokens: int,
        progress: Progress | None = None,
        seed: int | None = None,
    ) -> list[Generation]:
        """Answers to the rewritten conversations."""
        read = self.transform.apply(prompts)
        return self.inner.generate(read, max_new_tokens=max_new_tokens, progress=progress, seed=seed)

    def fits(self, query: Query, *, room: int = 0) -> bool:
        """Whether the rewritten conversation fits."""
        (read,) = self.transform.apply([query.messages])
        return self.inner.fits(Query(read, query.answers), room=room)

    def text_logprobs(self, texts: Sequence[str], *, progress: Progress | None = None) -> list[AnswerScore]:
        """As the inner model."""
        return self.inner.text_logprobs(texts, progress=progress)

    def sources(self, messages: Messages) -> tuple[str, ...]:
        """What was put before a conversation: ids of passages."""
        return self.transform.sources(messages)

    def saved_in(self, folder: Path) -> PromptedModel:
        """Written into the folder, and loaded by it from then on."""
        self.save_whole(folder)
        return replace(self, source=str(folder.resolve()))

    def save_whole(self, folder: Path) -> None:
        """Write what it reads, and where the inner model is."""
        kind, fields = self.transform.save(folder)
        save_moved(folder, kind, self.inner, fields)

    def describe(self) -> dict[str, Any]:
        """The inner model's, and what it reads."""
        return {**self.inner.describe(), "id": self.id, "prompted": self.transform.describe()}


@dataclass(frozen=True)
class SystemTurn:
    """The same text before every conversation, as its system turn."""

    text: str

    def apply(self, conversations: Sequence[Messages]) -> list[Messages]:
        """A system turn that a conversation has already follows the text, in the same turn."""
        return [with_system(self.text, messages) for messages in conversations]

    def sources(self, messages: Messages) -> tuple[str, ...]:
        """It quotes nothing."""
        del messages
        return ()

    def describe(self) -> dict[str, Any]:
        """The text itself."""
        return {"system": self.text}

    def save(self, folder: Path) -> tuple[str, dict[str, Any]]:
        """The text is its record."""
        del folder
        return "prompt", self.describe()


def with_system(text: str, messages: Messages) -> Messages:
    """A conversation with ``text`` as its system turn, or before the one it has."""
    own = [m.content for m in messages if m.role == "system"]
    return (Message("system", "\n\n".join([text, *own])), *(m for m in messages if m.role != "system"))


def system_notes(model: LanguageModel) -> tuple[str, ...]:
    """What becomes of system turns, where the model's chat template gives them no turn of their own."""
    note = model.describe().get("system_turn")
    return () if note is None else (str(note),)


def load_prompted(
    id: str, base: LanguageModel, folder: Path, fields: dict[str, Any], log: Callable[[str], None]
) -> PromptedModel:
    """A model with a fixed system turn, as it was saved."""
    del log
    text = fields_of(_Saved, fields, folder).system
    return PromptedModel(id, base, SystemTurn(text), source=str(folder.resolve()))


class _Saved(BaseModel):
    """Its own fields in ``conviction.json``."""

    model_config = ConfigDict(strict=True)

    system: str = Field(min_length=1)
