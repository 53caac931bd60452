"""What the rooms say to each other: questions, scored answers, models.

A ``LanguageModel`` is anything that can put log-probabilities on given answers and write answers of its own.
Interventions take one and return one, so one measuring path serves models before and after.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


def chat(question: str, *, system: str | None = None) -> tuple[Message, ...]:
    """A conversation of one user turn, with an optional system turn before it."""
    turns = (Message("user", question),)
    return turns if system is None else (Message("system", system), *turns)


@dataclass(frozen=True)
class Query:
    """One conversation that ends with a user turn, and the answers to score after it."""

    messages: tuple[Message, ...]
    answers: tuple[str, ...]


@dataclass(frozen=True)
class AnswerScore:
    """Per-token log-probabilities of one answer, in nats.

    token_ids [n], logprobs [n]: log p(token | conversation, tokens before it).
    The end-of-turn token is not scored: it says nothing about the answer.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]

    @property
    def logp_sum(self) -> float:
        """Log p(answer | conversation), nats."""
        return float(sum(self.logprobs))

    @property
    def logp_mean(self) -> float:
        """Nats per token."""
        return self.logp_sum / len(self.logprobs)


@dataclass(frozen=True, eq=False)
class AnswerStates:
    """A scored answer with what the model thought while it read it.

    state_sum [hidden]: sum of the last hidden states at the positions that predict its tokens,
    from the prompt's last to the answer's second-last
    """

    score: AnswerScore
    state_sum: NDArray[np.float32]


@dataclass(frozen=True)
class PairScore:
    """Two scored answers to one conversation, and how alike they look to the model.

    hidden_dot      ⟨Σh⁺, Σh⁻⟩ of their state sums, and chosen_norm_sq: ‖Σh⁺‖²; None: the model shows no states
    """

    chosen: AnswerScore
    rejected: AnswerScore
    hidden_dot: float | None = None
    chosen_norm_sq: float | None = None

    @property
    def logp_margin(self) -> float:
        """Nats by which the whole chosen answer is likelier than the rejected one: what DPO reckons with."""
        return self.chosen.logp_sum - self.rejected.logp_sum

    @property
    def logp_margin_mean(self) -> float:
        """The same, nats per token."""
        return self.chosen.logp_mean - self.rejected.logp_mean


@dataclass(frozen=True)
class Generation:
    """A continuation: its text, its ids, and whether the model ended it by itself."""

    text: str
    token_ids: tuple[int, ...]
    ended: bool


Progress = Callable[[int, int], None]
"""Called with (done, total) as work proceeds; the unit is the caller's."""


@runtime_checkable
class LanguageModel(Protocol):
    """A model that can be questioned. ``id`` names it in every report."""

    @property
    def id(self) -> str: ...

    def logprobs(
        self, queries: Sequence[Query], *, progress: Progress | None = None, fresh: bool = False
    ) -> list[list[AnswerScore]]:
        """One list per query, one score per answer, in the order given. ``fresh``: from no cache."""

    def generate(
        self,
        prompts: Sequence[tuple[Message, ...]],
        *,
        max_new_tokens: int,
        progress: Progress | None = None,
        seed: int | None = None,
    ) -> list[Generation]:
        """Greedy answers, in the order given; with a ``seed`` sampled at temperature 1 instead."""

    def fits(self, query: Query, *, room: int = 0) -> bool:
        """Whether the conversation and each of the answers, or ``room`` tokens, fit in the model's context.

        Raises InputError for a conversation that the model's chat template refuses.
        """

    def text_logprobs(self, texts: Sequence[str], *, progress: Progress | None = None) -> list[AnswerScore]:
        """Plain texts without a conversation; the first token of each is context, not scored."""

    def describe(self) -> dict[str, Any]:
        """Provenance: what one needs to know to measure the same again."""


@runtime_checkable
class Sourced(Protocol):
    """A language model that reads texts before it answers."""

    def sources(self, messages: tuple[Message, ...]) -> tuple[str, ...]:
        """Ids of what it reads before this conversation."""


def sources_of(model: LanguageModel, messages: tuple[Message, ...]) -> tuple[str, ...]:
    """What a model reads before a conversation; nothing, for most."""
    return model.sources(messages) if isinstance(model, Sourced) else ()


@runtime_checkable
class WeightModel(LanguageModel, Protocol):
    """A language model whose weights are at hand."""

    @property
    def module(self) -> Any:
        """The ``torch.nn.Module``."""

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer."""


@runtime_checkable
class HiddenStateModel(LanguageModel, Protocol):
    """A language model that shows hidden states, where ``hidden_states`` says so."""

    @property
    def hidden_states(self) -> bool: ...

    def pair_scores(self, queries: Sequence[Query], *, progress: Progress | None = None) -> list[PairScore]:
        """Queries of two answers each: both scores, and what hidden states say of the two."""
