"""A language model over any engine: encoding, length limits, the cache, the self-check and the choice of packing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from itertools import chain
from typing import Any, cast

from conviction.core.protocols import AnswerScore, AnswerStates, Generation, Message, PairScore, Progress, Query
from conviction.errors import ModelError
from conviction.models.backends import DEFAULT_BACKEND
from conviction.models.engine.packing import Ids, plan
from conviction.models.engine.protocol import Engine, HiddenStateEngine, PackingEngine, Row, Scores, StateSums
from conviction.models.engine.selfcheck import (
    UNPACKED,
    Agreement,
    SelfCheck,
    check_packing,
    rescore,
)
from conviction.models.memory import memory_errors
from conviction.models.pairs import score_pairs
from conviction.models.prompts import PromptEncoder
from conviction.models.score_cache import ScoreCache, get_or_compute

SHORTEN = "shorten the context, the questions or the answers"


class EngineModel:
    """A ``LanguageModel`` that holds an engine.

    check   how packed scores compared with separate ones at load; given: that of
            the model that this one was made from, which is not repeated
    agreement  how packed scores of the actual rows compared with the model's own ``forward``;
            None: nothing was scored in packs yet
    source  what ``load_model`` finds the same weights by, from any directory; None: nothing
    backend  the name of what ``load_model`` loaded it with
    """

    backend = DEFAULT_BACKEND

    def __init__(self, *, id: str, engine: Engine, check: SelfCheck | None = None, source: str | None = None) -> None:
        self.id = id
        self.engine = engine
        self.source = source
        self.hidden_states = engine.hidden_states
        self.encoder = PromptEncoder(engine.tokenizer, engine.context_length)
        self.joint_mismatches = 0
        self.agreement: Agreement | None = None
        self.check = check or self._choose_packing()

    @property
    def tokenizer(self) -> Any:
        """The engine's."""
        return self.engine.tokenizer

    # -- scoring ---------------------------------------------------------------

    def logprobs(
        self, queries: Sequence[Query], *, progress: Progress | None = None, fresh: bool = False
    ) -> list[list[AnswerScore]]:
        """Per-token log-probs of every answer. What was scored before comes from the cache, unless ``fresh``."""
        rows, questions = self._encode(queries)
        if not fresh:  # those repeat what was counted
            self.joint_mismatches = sum(map(self.encoder.joint_mismatches, queries))
        scores = self._scores([r for group in rows for r in group], questions, progress, fresh=fresh)
        return [[AnswerScore(row[1], scores[row]) for row in group] for group in rows]

    def answer_states(self, queries: Sequence[Query], *, progress: Progress | None = None) -> list[list[AnswerStates]]:
        """``logprobs`` from and for no cache, with hidden states: one pass for both.

        Raises ModelError for an engine that shows none.
        """
        if not self.hidden_states:
            raise ModelError(f"{self.id} shows no hidden states", hint="load it with another backend")
        (rows, questions), sums = self._encode(queries), StateSums()
        scores = self._scores([r for group in rows for r in group], questions, progress, fresh=True, sums=sums)
        return [[AnswerStates(AnswerScore(row[1], scores[row]), sums[row]) for row in group] for group in rows]

    def pair_scores(self, queries: Sequence[Query], *, progress: Progress | None = None) -> list[PairScore]:
        """Queries of two answers each: both scores, and what hidden states, if any, say of the two; cached."""
        if not self.hidden_states:
            return [PairScore(a, b) for a, b in self.logprobs(queries, progress=progress)]
        return score_pairs(self, queries, progress)

    def fits(self, query: Query, *, room: int = 0) -> bool:
        """Whether the conversation and each of the answers, or ``room`` tokens, fit in the model's context."""
        return self.encoder.fits(query, room)

    def text_logprobs(self, texts: Sequence[str], *, progress: Progress | None = None) -> list[AnswerScore]:
        """Plain texts; what stands before the second token (BOS or the first token) is context."""
        encoded = [self.encoder.encode_text(text) for text in texts]
        for text, ids in zip(texts, encoded, strict=True):
            self.encoder.check_length((), ids, text)
        rows = [(ids[:1], ids[1:]) for ids in encoded]
        scores = self._scores(rows, dict(zip(rows, texts, strict=True)), progress)
        return [AnswerScore(row[1], scores[row]) for row in rows]

    def continuations(self, rows: Sequence[tuple[str, str]], *, progress: Progress | None = None) -> list[AnswerScore]:
        """Plain texts and how they go on after one space, without a conversation: log-probs of what follows."""
        encoded = [(self.encoder.encode_text(text), self.encoder.encode_continuation(more)) for text, more in rows]
        for (prompt, more), (text, _) in zip(encoded, rows, strict=True):
            self.encoder.check_length(prompt, more, text)
        scores = self._scores(encoded, {ids: text for ids, (text, _) in zip(encoded, rows, strict=True)}, progress)
        return [AnswerScore(row[1], scores[row]) for row in encoded]

    def _encode(self, queries: Sequence[Query]) -> tuple[list[list[Row]], dict[Row, str]]:
        """Ids of every query's answers, and what the user knows each by. Raises InputError for one that is too long."""
        rows: list[list[Row]] = []
        questions: dict[Row, str] = {}
        for query in queries:
            prompt, answers = self.encoder.encode(query.messages, query.answers)
            rows.append([(prompt, answer) for answer in answers])
            for row in rows[-1]:
                self.encoder.check_length(*row, query.messages[-1].content)
                questions[row] = query.messages[-1].content
        return rows, questions

    def _scores(
        self,
        rows: Sequence[Row],
        names: dict[Row, str],
        progress: Progress | None,
        *,
        fresh: bool = False,
        sums: StateSums | None = None,
    ) -> dict[Row, tuple[float, ...]]:
        """Cached scores, and the rest computed and kept batch by batch. ``names``: what the user knows rows by.

        A sample of packed scores, cached or not, is held against the model's own ``forward``. Where they do not
        agree, all rows are scored again separately, from now on, and what the cache held of them is dropped.
        """

        def compute(missing: list[Row]) -> Iterator[Scores]:
            done = 0
            for batch in self._batches(missing, sums):
                for row, values in batch.items():
                    if not all(map(math.isfinite, values)):
                        raise ModelError(
                            f"{self.id} gives a log-prob that is not finite for {names[row][:60]!r}",
                            hint="the weights may be damaged or fp16 may overflow: try --dtype fp32, or another model",
                        )
                yield batch  # which is kept before progress is told, and may end it all
                done += len(batch)
                if progress is not None:
                    progress(done, len(missing))

        scope = None if fresh else self.cache_scope()
        with self._memory(rows):
            scores = get_or_compute(scope, rows, compute)
            if not self.check.packed or self._confirmed(scores):
                return scores
        if scope is not None:
            with closing(ScoreCache(scope)) as cache:
                cache.drop(scores)
        return self._scores(rows, names, progress, fresh=fresh, sums=sums)

    def _confirmed(self, scores: Scores) -> bool:
        """Whether a sample of packed scores is what separate rows give; no more packing where it is not."""
        engine = cast(PackingEngine, self.engine)
        latest = rescore(engine, scores, self.agreement)
        if latest is None:
            return True
        self.agreement = latest.joined(self.agreement)
        if latest.accepted:
            return True
        engine.use_packing(False)
        far = f"{latest.max_difference:.2g} nats a token, {latest.mean_difference:.2g} in a row's mean"
        reason = f"separate rows: {latest.rows} rows scored again by the model's own forward differ by up to {far}"
        self.check = SelfCheck(False, latest.max_difference, self.check.tolerance, 0.0, reason)
        return False

    def _batches(self, rows: Sequence[Row], sums: StateSums | None = None) -> Iterator[Scores]:
        """Computed scores: packed where that was found to agree with separate rows."""
        if not rows:
            return iter(())
        parts: dict[bool, list[Row]] = {True: [], False: []}
        for row in rows:
            parts[self.packs([row])].append(row)
        return chain(self._separate(parts[False], sums), self._packed(parts[True], sums))

    def _separate(self, rows: Sequence[Row], sums: StateSums | None) -> Iterator[Scores]:
        if sums is None:
            return self.engine.score(rows)
        return cast(HiddenStateEngine, self.engine).score(rows, sums=sums)

    def _packed(self, rows: Sequence[Row], sums: StateSums | None = None) -> Iterator[Scores]:
        if not rows:
            return iter(())
        engine = cast(PackingEngine, self.engine)
        requests = [(prompt, [answer]) for prompt, answer in rows]
        blocks = plan(requests, token_budget=engine.token_budget, hidden_size=engine.hidden_size)
        return engine.score_packed(blocks, sums=sums)

    def computed(self, rows: Sequence[Row]) -> dict[Row, tuple[float, ...]]:
        """Scores from and for no cache, of which none is scored again: for a model whose weights move all the time.

        Whether rows are packed so never changes between two readings that are compared. Log-probs may be no numbers.
        """
        with self._memory(rows):
            batches = self._batches(list(dict.fromkeys(rows)))
            return {row: tuple(values) for batch in batches for row, values in batch.items()}

    def _memory(self, rows: Sequence[Row]) -> AbstractContextManager[None]:
        """Says of which rows memory was at an end."""
        longest = max((len(prompt) + len(answer) for prompt, answer in rows), default=0)
        return memory_errors(f"scoring by {self.id}: its longest row has {longest} tokens", reduce=SHORTEN)

    def packs(self, rows: Iterable[Row]) -> bool:
        """Whether rows may be computed in packs with any others of them."""
        if not self.check.packed:
            return False
        limit = cast(PackingEngine, self.engine).packable_length
        return limit is None or all(len(prompt) + len(answer) <= limit for prompt, answer in rows)

    def _choose_packing(self) -> SelfCheck:
        """Pack if the engine can, and packed scores agree with separate ones, which are the reference."""
        engine = self.engine
        if not isinstance(engine, PackingEngine):
            return UNPACKED

        def score_packed(rows: Sequence[Row]) -> Iterator[Scores]:
            engine.use_packing(True)
            return self._packed(rows)

        check = check_packing(engine, self.encoder, score_packed)
        if not check.packed:
            engine.use_packing(False)
        return check

    def scope(self) -> tuple[str, ...]:
        """All that scores depend on besides the ids."""
        return (*self.engine.scope(), self.encoder.template, "packed" if self.check.packed else "rows")

    def cache_scope(self) -> tuple[str, ...] | None:
        """The scope that scores are kept under; None where they must not be kept."""
        return self.scope() if self.engine.cacheable else None

    # -- writing ---------------------------------------------------------------

    def generate(
        self,
        prompts: Sequence[tuple[Message, ...]],
        *,
        max_new_tokens: int,
        progress: Progress | None = None,
        seed: int | None = None,
    ) -> list[Generation]:
        """Greedy answers; with a ``seed`` sampled from the whole distribution."""
        encoded = [self.encoder.encode_prompt(messages) for messages in prompts]
        for prompt, messages in zip(encoded, prompts, strict=True):
            self.encoder.check_length(prompt, (0,) * max_new_tokens, messages[-1].content)
        return self.continue_ids(encoded, max_new_tokens, seed=seed, progress=progress)

    def continue_ids(
        self, prompts: Sequence[Ids], max_new_tokens: int, *, seed: int | None = None, progress: Progress | None = None
    ) -> list[Generation]:
        """What the model writes after prompts that are encoded already."""
        longest = max(map(len, prompts), default=0) + max_new_tokens
        with memory_errors(f"writing by {self.id}: {len(prompts)} answers, up to {longest} tokens", reduce=SHORTEN):
            written = self.engine.generate(prompts, max_new_tokens, seed=seed, progress=progress)
        return [
            Generation(self.tokenizer.decode(list(w.token_ids), skip_special_tokens=True), w.token_ids, w.ended)
            for w in written
        ]

    # -- provenance ------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """All that is needed to measure the same again."""
        return {
            "id": self.id,
            "backend": self.backend,
            **self.engine.describe(),
            "noise_nats": self.check.noise,
            **({} if self.check is UNPACKED else {"self_check": self.check.summary()}),
            **({} if self.agreement is None else {"rescored": self.agreement.summary()}),
            "chat_template": bool(self.tokenizer.chat_template),
            "joint_encoding_mismatches": self.joint_mismatches,
            **({"system_turn": note} if (note := self.encoder.system_turn) else {}),
        }
