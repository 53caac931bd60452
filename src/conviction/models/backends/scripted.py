"""A model that says what it is told: for tests of code that asks models, and for teaching."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from conviction.core.protocols import AnswerScore, Generation, Message, Progress, Query

__all__ = ["ScriptedModel"]


@dataclass(frozen=True, kw_only=True)
class ScriptedModel:
    """A ``LanguageModel`` without weights. Tokens are words.

    likes   (conversation, answer) → mean log-prob per token, in nats
    writes  conversation → greedy answer
    """

    id: str = "scripted"
    likes: Callable[[tuple[Message, ...], str], float] = field(default=lambda _conversation, _answer: -1.0)
    writes: Callable[[tuple[Message, ...]], str] = field(default=lambda conversation: conversation[-1].content)

    def logprobs(
        self, queries: Sequence[Query], *, progress: Progress | None = None, fresh: bool = False
    ) -> list[list[AnswerScore]]:
        """Every word of an answer gets the same log-prob. Nothing is remembered: always ``fresh``."""
        del fresh
        scores = [[_score(answer, self.likes(q.messages, answer)) for answer in q.answers] for q in queries]
        _finish(progress, len(scores))
        return scores

    def generate(
        self,
        prompts: Sequence[tuple[Message, ...]],
        *,
        max_new_tokens: int,
        progress: Progress | None = None,
        seed: int | None = None,
    ) -> list[Generation]:
        """The scripted texts, cut to ``max_new_tokens`` words, whatever the ``seed``."""
        del seed
        written = []
        for prompt in prompts:
            words = self.writes(prompt).split()
            text = " ".join(words[:max_new_tokens])
            written.append(Generation(text, _ids(text), ended=len(words) <= max_new_tokens))
        _finish(progress, len(written))
        return written

    def text_logprobs(self, texts: Sequence[str], *, progress: Progress | None = None) -> list[AnswerScore]:
        """The text as an answer to nothing; its first word is context."""
        scores = [_score(text.split(maxsplit=1)[1], self.likes((), text)) for text in texts]
        _finish(progress, len(scores))
        return scores

    def fits(self, query: Query, *, room: int = 0) -> bool:
        """Its context has no end."""
        del query, room
        return True

    def describe(self) -> dict[str, Any]:
        """It has no weights to speak of."""
        return {"id": self.id, "architecture": "scripted"}


def _finish(progress: Progress | None, count: int) -> None:
    if progress is not None:
        progress(count, count)


def _ids(text: str) -> tuple[int, ...]:
    return tuple(sum(map(ord, word)) for word in text.split())


def _score(text: str, mean: float) -> AnswerScore:
    ids = _ids(text)
    return AnswerScore(ids, (mean,) * len(ids))
