"""Models through transformers: scoring, writing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from conviction.core.protocols import AnswerScore, AnswerStates, Generation, Message, PairScore, Progress, Query
from conviction.errors import InputError, ModelError
from conviction.models.engine.attention import KERNEL
from conviction.models.engine.logprobs import answer_states, compute_prefix, find_head, predictions, token_logprobs
from conviction.models.engine.packing import Ids, plan, plan_tokens
from conviction.models.engine.selfcheck import SelfCheck, check_packing
from conviction.models.engine.unpacked import score_unpacked
from conviction.models.lora import merged_copy
from conviction.models.pairs import score_pairs
from conviction.models.prompts import PromptEncoder
from conviction.models.score_cache import ScoreCache, fingerprint
from conviction.models.shift import add_steering, is_steered
from conviction.models.writing import continue_prompts

__all__ = ["HFModel"]

Row = tuple[Ids, Ids]
Keep = Callable[[dict[Row, list[float]]], None]
StateSums = dict[Row, NDArray[np.float32]]

transformers.logging.disable_progress_bar()  # writing weights is not worth one

# Tokens in one forward pass. Below ~1000 a CPU spends its time on weight traffic
# (benchmarks/results/token_budget.json); a GPU wants to be filled.
TOKEN_BUDGET = {"cpu": 1024, "cuda": 8192, "mps": 2048}


class HFModel:
    """A transformers causal language model (a ``WeightModel``).

    module, tokenizer  as transformers made them
    check              how packed scores compared with separate ones at load; given: that of
                       the model that this one was made from, which is not repeated
    source             what ``load`` finds the same weights by, from any directory; None: nothing
    """

    def __init__(
        self,
        *,
        id: str,
        module: Any,
        tokenizer: Any,
        dtype_reason: str = "as given",
        token_budget: int | None = None,
        check: SelfCheck | None = None,
        source: str | None = None,
    ) -> None:
        self.id = id
        self.source = source
        self.module = module.eval()
        self.tokenizer = tokenizer
        self.dtype_reason = dtype_reason
        parameter = next(module.parameters())
        self.device: torch.device = parameter.device
        self.dtype: torch.dtype = parameter.dtype
        self.token_budget = token_budget or TOKEN_BUDGET.get(self.device.type, 2048)
        config = module.config.get_text_config()
        self._hidden_size = int(config.hidden_size)
        self.encoder = PromptEncoder(tokenizer, getattr(config, "max_position_embeddings", None))
        self.joint_mismatches = 0
        self.check: SelfCheck = check or self._choose_kernel()

    # -- scoring ---------------------------------------------------------------

    def logprobs(
        self, queries: Sequence[Query], *, progress: Progress | None = None, fresh: bool = False
    ) -> list[list[AnswerScore]]:
        """Per-token log-probs of every answer. What was scored before comes from the cache, unless ``fresh``."""
        rows, questions = self._encode(queries)
        if not fresh:  # those repeat what was counted
            self.joint_mismatches = sum(
                self.encoder.joint_encoding_differs(q.messages, a) for q in queries for a in q.answers
            )
        scores = self._scores([r for group in rows for r in group], questions, progress, fresh=fresh)
        return [[AnswerScore(row[1], scores[row]) for row in group] for group in rows]

    def answer_states(self, queries: Sequence[Query], *, progress: Progress | None = None) -> list[list[AnswerStates]]:
        """``logprobs`` from and for no cache, with hidden states: one pass for both."""
        (rows, questions), sums = self._encode(queries), StateSums()
        scores = self._scores([r for group in rows for r in group], questions, progress, fresh=True, sums=sums)
        return [[AnswerStates(AnswerScore(row[1], scores[row]), sums[row]) for row in group] for group in rows]

    def pair_scores(self, queries: Sequence[Query], *, progress: Progress | None = None) -> list[PairScore]:
        """Queries of two answers each: both scores, and what hidden states say of the two; cached."""
        return score_pairs(self, queries, progress)

    def fits(self, query: Query, *, room: int = 0) -> bool:
        """Whether the conversation and each of the answers, or ``room`` tokens, fit in the model's context."""
        return self.encoder.fits(query, room)

    def _encode(self, queries: Sequence[Query]) -> tuple[list[list[Row]], dict[Row, str]]:
        """Ids of every query's answers, and what the user knows each by. Raises InputError for one that is too long."""
        rows: list[list[Row]] = []
        questions: dict[Row, str] = {}
        prompts: dict[tuple[Message, ...], Ids] = {}
        for query in queries:
            prompt = prompts.get(query.messages)
            if prompt is None:
                prompt = prompts[query.messages] = self.encoder.encode_prompt(query.messages)
            rows.append([(prompt, self.encoder.encode_answer(answer, query.messages)) for answer in query.answers])
            for row in rows[-1]:
                self.encoder.check_length(*row, query.messages[-1].content)
                questions[row] = query.messages[-1].content
        return rows, questions

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

    def _scores(
        self,
        rows: Sequence[Row],
        names: dict[Row, str],
        progress: Progress | None,
        *,
        fresh: bool = False,
        sums: StateSums | None = None,
    ) -> dict[Row, tuple[float, ...]]:
        """Cached scores, and the rest computed and kept pack by pack."""
        cache = None if fresh or self.hooked else ScoreCache(self.scope())
        try:
            wanted = list(dict.fromkeys(rows))
            known = {} if cache is None else cache.find(wanted)
            missing = [row for row in wanted if row not in known]

            def keep(found: dict[Row, list[float]]) -> None:
                for row, values in found.items():
                    if not all(map(math.isfinite, values)):
                        raise ModelError(
                            f"{self.id} gives a log-prob that is not finite for {names[row][:60]!r}",
                            hint="the weights may be damaged or fp16 may overflow: try --dtype fp32, or another model",
                        )
                computed = {row: tuple(values) for row, values in found.items()}
                if cache is not None:
                    cache.keep(computed)
                known.update(computed)

            if missing:
                (self._packed if self.check.packed else self._separate)(missing, keep, progress, sums)
            return known
        finally:
            if cache is not None:
                cache.close()

    @torch.inference_mode()
    def _packed(
        self, rows: Sequence[Row], keep: Keep, progress: Progress | None = None, sums: StateSums | None = None
    ) -> None:
        body, head = self.module.base_model, find_head(self.module)
        blocks = plan(
            [(prompt, [answer]) for prompt, answer in rows],
            token_budget=self.token_budget,
            hidden_size=self._hidden_size,
        )
        total, done = plan_tokens(blocks), 0
        for block in blocks:
            prefix = compute_prefix(body, block.prefix, self.device)
            done += prefix.length
            for pack in block.packs:
                hidden, targets = answer_states(body, head, pack, prefix)
                values = token_logprobs(hidden, targets, head).cpu()
                _, _, where = predictions(pack)
                if sums is not None:
                    sums.update((row, hidden[index].float().sum(0).cpu().numpy()) for row, index in where.items())
                keep({row: values[index].tolist() for row, index in where.items()})
                done += sum(len(t.tokens) for t in pack.trees)
                if progress is not None:
                    progress(done, total)

    def _separate(
        self, rows: Sequence[Row], keep: Keep, progress: Progress | None = None, sums: StateSums | None = None
    ) -> None:
        for i, row in enumerate(sorted(rows, key=lambda r: (-len(r[0]) - len(r[1]), r))):
            states: list[Any] = []
            keep({row: score_unpacked(self.module, [row], sums=None if sums is None else states)[0]})
            if sums is not None:
                sums[row] = states[0]
            if progress is not None:
                progress(i + 1, len(rows))

    def _choose_kernel(self) -> SelfCheck:
        """Install the packed kernel if it agrees with the model's own attention, which is the reference."""
        own = self.module.config._attn_implementation  # noqa: SLF001  has no public name
        chunked = getattr(self.module.config.get_text_config(), "attention_chunk_size", None)

        def score(rows: Sequence[Row]) -> dict[Row, list[float]]:
            if chunked:
                raise NotImplementedError("chunked attention")
            self.module.set_attn_implementation(KERNEL)
            found: dict[Row, list[float]] = {}
            self._packed(rows, found.update)
            return found

        check = check_packing(self.module, self.encoder, self.dtype, score)
        if not check.packed:
            self.module.set_attn_implementation(own)
        return check

    @property
    def hooked(self) -> bool:
        """Whether a hook can change what the model says without changing its weights: then nothing is cached."""
        return any(
            m._forward_pre_hooks or any(hook is not add_steering for hook in m._forward_hooks.values())  # noqa: SLF001
            for m in self.module.modules()
        )

    def scope(self) -> tuple[str, ...]:
        """All that scores depend on besides the ids."""
        return (
            fingerprint(self.module),
            type(self.module).__qualname__,
            self.module.config.to_json_string(),
            self.encoder.template,
            str(self.dtype),
            self.device.type,
            "packed" if self.check.packed else "rows",
            torch.__version__,
            transformers.__version__,
        )

    # -- writing ---------------------------------------------------------------

    def generate(
        self,
        prompts: Sequence[tuple[Message, ...]],
        *,
        max_new_tokens: int,
        progress: Progress | None = None,
        seed: int | None = None,
    ) -> list[Generation]:
        """Greedy answers, batched with padding on the left; with a ``seed`` sampled from the whole distribution."""
        encoded = [self.encoder.encode_prompt(messages) for messages in prompts]
        for prompt, messages in zip(encoded, prompts, strict=True):
            self.encoder.check_length(prompt, (0,) * max_new_tokens, messages[-1].content)
        return continue_prompts(self.module, self.tokenizer, encoded, max_new_tokens, seed=seed, progress=progress)

    def save_whole(self, folder: Path) -> None:
        """Write all weights (safetensors; an adapter is merged into a copy first) and the tokenizer.

        Raises InputError for a steered model, whose vectors are no weights.
        """
        if is_steered(self.module):
            raise InputError(
                f"{self.id} is steered, which whole weights cannot hold",
                hint="apply `steer` with a run folder, and load its model",
            )
        module = merged_copy(self.module) if hasattr(self.module, "peft_config") else self.module
        folder.mkdir(parents=True, exist_ok=True)
        module.save_pretrained(str(folder))
        self.tokenizer.save_pretrained(str(folder))

    # -- provenance ------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """All that is needed to measure the same again."""
        config = self.module.config
        return {
            "id": self.id,
            "architecture": type(self.module).__name__,
            "parameters": sum(p.numel() for p in self.module.parameters()),
            "fingerprint": fingerprint(self.module),
            "revision": getattr(config, "_commit_hash", None),
            "dtype": str(self.dtype).removeprefix("torch."),
            "dtype_reason": self.dtype_reason,
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "attention": config._attn_implementation,  # noqa: SLF001
            "noise_nats": self.check.noise,
            "self_check": self.check.summary(),
            "chat_template": bool(self.tokenizer.chat_template),
            "joint_encoding_mismatches": self.joint_mismatches,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
