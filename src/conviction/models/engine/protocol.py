"""What a backend must bring: an engine, which scores rows of token ids and writes token ids.

Everything else stands once above all engines, in ``language_model``: encoding,
length limits, the cache, the self-check and the choice whether to pack.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from conviction.core.protocols import Progress
from conviction.models.engine.packing import Block, Ids

Row = tuple[Ids, Ids]
"""Ids of a prompt, at least one, and of the answer that is scored after it."""

Scores = Mapping[Row, Sequence[float]]
"""Row → log p(token | prompt, tokens before it) for each token of its answer, nats."""

StateSums = dict[Row, NDArray[np.float32]]
"""Row → [hidden], the sum of the last hidden states at the positions that predict its answer."""


@dataclass(frozen=True)
class Continuation:
    """Ids that were written, without the token that ended them, and whether one did."""

    token_ids: Ids
    ended: bool


class Engine(Protocol):
    """A model as its backend runs it: ids in, numbers and ids out.

    tokenizer       as transformers' tokenizers, as far as ``prompts.PromptEncoder`` and ``decode`` go
    architecture    what it is called in messages and records
    dtype           of the weights, by torch's name: "float32"
    context_length  tokens that it can read; None: no limit
    trainable       its weights are a torch module, ``module``, that can be looked into and changed
    hidden_states   it is a ``HiddenStateEngine``
    cacheable       what it scores depends on ``scope()`` and the ids alone, now
    """

    @property
    def tokenizer(self) -> Any: ...
    @property
    def architecture(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def context_length(self) -> int | None: ...
    @property
    def trainable(self) -> bool: ...
    @property
    def hidden_states(self) -> bool: ...
    @property
    def cacheable(self) -> bool: ...

    def score(self, rows: Sequence[Row]) -> Iterator[Scores]:
        """Log-probs of all rows, in batches as they are ready: a batch is kept although a later one fails."""

    def generate(
        self, prompts: Sequence[Ids], max_new_tokens: int, *, seed: int | None = None, progress: Progress | None = None
    ) -> list[Continuation]:
        """What follows each prompt, in order: greedy, or with a ``seed`` sampled at temperature 1."""

    def scope(self) -> tuple[str, ...]:
        """All that scores depend on besides ids: weights, settings, dtype, device, versions."""

    def describe(self) -> dict[str, Any]:
        """Provenance: what is needed to measure the same again."""


class HiddenStateEngine(Engine, Protocol):
    """An engine that shows hidden states, from the pass that gives log-probs."""

    def score(self, rows: Sequence[Row], *, sums: StateSums | None = None) -> Iterator[Scores]:
        """As ``Engine.score``; ``sums`` takes each row's hidden states."""


@runtime_checkable
class PackingEngine(HiddenStateEngine, Protocol):
    """An engine that can also read packed token trees (``packing``), where its ``score`` is the reference.

    token_budget     tokens in one forward pass
    hidden_size      width of its states, which the plan reckons with
    packable_length  rows of more tokens than this are scored by themselves; None: any length may be packed
    """

    @property
    def token_budget(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def packable_length(self) -> int | None: ...

    def use_packing(self, on: bool) -> None:
        """Prepare for packed or for separate rows. Raises any error where the architecture allows no packing."""

    def score_packed(self, blocks: Sequence[Block], *, sums: StateSums | None = None) -> Iterator[Scores]:
        """Log-probs of all rows of a plan, pack by pack."""

    def rounded(self) -> AbstractContextManager[None]:
        """While it is open, inputs differ by one step of the dtype: what that changes is what rounding does."""
