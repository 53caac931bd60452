"""From conversations to token ids, and from many examples to the steps of a run. No torch here.

The whole order of a run is a pure function of its settings: it is known before
the first step, is the same in every process, and is what a resumed run takes
up again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from conviction.core.protocols import Message
from conviction.data.training_data import Document, Example, PreferencePair
from conviction.errors import InputError
from conviction.models.engine.packing import Ids, Pack, pack_whole
from conviction.models.prompts import PromptEncoder
from conviction.training.settings import MOST_STEPS, Training


@dataclass(frozen=True)
class TokenizedExample:
    """One example in token ids.

    answers  (chosen, rejected) or (answer,), each with its end-of-turn token
    weight   of its loss in a step
    """

    id: str
    prompt: Ids
    answers: tuple[Ids, ...]
    weight: float = 1.0

    @property
    def counts(self) -> tuple[int, ...]:
        """Tokens per answer."""
        return tuple(map(len, self.answers))

    @property
    def longest(self) -> int:
        """Tokens of the longest row: prompt and answer."""
        return len(self.prompt) + max(self.counts)


def answer_counts(examples: Sequence[TokenizedExample]) -> list[list[int]]:
    """[n, a] tokens of each answer; 0 where an example has fewer than others."""
    most = max((len(e.answers) for e in examples), default=0)
    return [[*e.counts, *[0] * (most - len(e.answers))] for e in examples]


def encode_pairs(encoder: PromptEncoder, pairs: Iterable[PreferencePair]) -> list[TokenizedExample]:
    """Preference pairs, chosen first. Raises InputError if both sides are the same ids."""
    encoded = []
    for pair in pairs:
        example = _encode(encoder, pair.id, pair.messages, (pair.chosen, pair.rejected))
        if example.answers[0] == example.answers[1]:
            raise InputError(
                f"{pair.id}: chosen and rejected are the same tokens", hint="remove the pair: it carries no signal"
            )
        encoded.append(example)
    return encoded


def encode_examples(encoder: PromptEncoder, examples: Iterable[Example]) -> list[TokenizedExample]:
    """Prompts with one answer to imitate."""
    return [_encode(encoder, e.id, e.messages, (e.answer,)) for e in examples]


def encode_documents(encoder: PromptEncoder, documents: Iterable[Document], length: int) -> list[TokenizedExample]:
    """Plain texts cut into pieces of at most ``length`` tokens, each begun by BOS where the tokenizer has one.

    No token of a piece sees another document. A piece's first token is context, not predicted.
    """
    encoded = []
    for document in documents:
        bos = encoder.bos()
        ids = encoder.encode_text(document.text)[len(bos) :]
        room = length - len(bos)
        for k, start in enumerate(range(0, len(ids), room)):
            piece = bos + ids[start : start + room]
            if len(piece) > 1:
                encoded.append(TokenizedExample(f"{document.id}#{k}", piece[:1], (piece[1:],)))
    return encoded


def keep_fitting(encoded: Sequence[TokenizedExample], limit: int | None) -> tuple[list[TokenizedExample], list[str]]:
    """(those of at most ``limit`` tokens, the ids of the longer ones). Raises InputError if nothing is left."""
    kept = [e for e in encoded if limit is None or e.longest <= limit]
    too_long = [e.id for e in encoded if limit is not None and e.longest > limit]
    if not kept:
        what = f"all {len(too_long)} examples are longer than {limit} tokens" if too_long else "there are no examples"
        raise InputError(what, hint="give shorter examples, a larger max_length, or a model with a longer context")
    return kept, too_long


def step_order(count: int, training: Training) -> list[tuple[int, ...]]:
    """Indices of the examples of each step. Every example is seen once an epoch; an epoch's last step may be short.

    Raises InputError for more steps than anybody takes.
    """
    order: list[tuple[int, ...]] = []
    per_step, most = training.examples_per_step, training.max_steps
    epochs = training.epochs_of(count)
    steps = epochs * math.ceil(count / per_step)
    if min(steps, most or steps) > MOST_STEPS:
        raise InputError(
            f"{count:,} examples for {epochs:,} epochs are {steps:,} steps",
            hint=f"give fewer epochs, a larger batch_size, or max_steps: at most {MOST_STEPS:,} steps are taken",
        )
    for epoch in range(epochs):
        shuffled = np.random.default_rng((training.seed, epoch)).permutation(count).tolist()
        order += [tuple(shuffled[i : i + per_step]) for i in range(0, count, per_step)]
        if most is not None and len(order) >= most:
            return order[:most]
    return order


@dataclass(frozen=True)
class MicroBatch:
    """One forward and backward pass. ``weight`` 0: only there to keep processes in step (see ``make_microbatches``)."""

    pack: Pack
    members: tuple[int, ...]  # indices of the examples, in the order of the pack's trees
    weight: float = 1.0


def make_microbatches(
    examples: Sequence[TokenizedExample],
    indices: Sequence[int],
    *,
    token_budget: int,
    process: int = 0,
    processes: int = 1,
) -> list[MicroBatch]:
    """Packs of one process's share of a step, longest first.

    Every process gets the same number of packs, as the collectives of DDP and
    FSDP need; one that has fewer repeats its first with weight 0.
    """
    shares = [_pack_share(examples, indices[i::processes], token_budget) for i in range(processes)]
    wanted = max(map(len, shares))
    mine = shares[process] or [_without_weight(shares[0][0])]
    return mine + [_without_weight(mine[0])] * (wanted - len(mine))


def _pack_share(examples: Sequence[TokenizedExample], indices: Sequence[int], token_budget: int) -> list[MicroBatch]:
    requests = [(examples[i].prompt, examples[i].answers) for i in indices]
    packs = pack_whole(requests, token_budget=token_budget)
    return [MicroBatch(pack, tuple(indices[k] for k in members)) for pack, members in packs]


def _without_weight(batch: MicroBatch) -> MicroBatch:
    return MicroBatch(batch.pack, batch.members, 0.0)


def _encode(encoder: PromptEncoder, id: str, messages: Sequence[Message], answers: tuple[str, ...]) -> TokenizedExample:
    (prompt, encoded), ending = encoder.encode(messages, answers), encoder.encode_ending(messages)
    return TokenizedExample(id, prompt, tuple(answer + ending for answer in encoded))
