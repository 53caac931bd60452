"""The engine under transformers' models: packed and separate scoring, and writing, in torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import transformers

from conviction.core.protocols import Progress
from conviction.models.engine.attention import KERNEL
from conviction.models.engine.logprobs import (
    answer_states,
    compute_prefix,
    find_head,
    predictions,
    token_logprobs,
    windows_of,
)
from conviction.models.engine.packing import Block, Ids
from conviction.models.engine.protocol import Continuation, Row, Scores, StateSums
from conviction.models.engine.unpacked import score_unpacked
from conviction.models.fingerprint import fingerprint
from conviction.models.shift import add_steering
from conviction.models.states import hooked, states_of, with_states
from conviction.models.writing import continue_prompts

transformers.logging.disable_progress_bar()  # reading and writing weights is not worth one

CHANGING_ROPE = {"dynamic", "longrope"}  # rotary frequencies that depend on the longest row of a forward pass

# Tokens in one forward pass. Below ~1000 a CPU spends its time on weight traffic
# (benchmarks/results/token_budget.json); a GPU wants to be filled.
TOKEN_BUDGET = {"cpu": 1024, "cuda": 8192, "mps": 2048}


class TorchEngine:
    """A transformers causal language model as a ``PackingEngine``; module and tokenizer as transformers made them."""

    trainable = True
    hidden_states = True
    tokenizer: Any

    def __init__(
        self, module: Any, tokenizer: Any, *, dtype_reason: str = "as given", token_budget: int | None = None
    ) -> None:
        self.module = module.eval()
        self.tokenizer = tokenizer
        self.dtype_reason = dtype_reason
        self.device: torch.device = next(module.parameters()).device
        self.token_budget = token_budget or TOKEN_BUDGET.get(self.device.type, 2048)
        self.packable_length: int | None = None
        self._own_attention: str | None = None

    @property
    def architecture(self) -> str:
        """The class of the module."""
        return type(self.module).__name__

    @property
    def dtype(self) -> str:
        """Of the first parameter."""
        return str(next(self.module.parameters()).dtype).removeprefix("torch.")

    @property
    def context_length(self) -> int | None:
        """As the configuration has it."""
        return getattr(self.module.config.get_text_config(), "max_position_embeddings", None)

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return int(self.module.config.get_text_config().hidden_size)

    @property
    def cacheable(self) -> bool:
        """Whether no hook can change what the model says without changing its weights."""
        return not any(
            m._forward_pre_hooks or any(hook is not add_steering for hook in m._forward_hooks.values())  # noqa: SLF001
            for m in self.module.modules()
        )

    # -- scoring ---------------------------------------------------------------

    def score(self, rows: Sequence[Row], *, sums: StateSums | None = None) -> Iterator[Scores]:
        """Each row by itself, the longest first: what does not fit in memory shows at once."""
        for row in sorted(rows, key=lambda r: (-len(r[0]) - len(r[1]), r)):
            states: list[Any] = []
            scores = score_unpacked(self.module, [row], sums=None if sums is None else states)
            if sums is not None:
                sums[row] = states[0]
            yield {row: scores[0]}

    def score_packed(self, blocks: Sequence[Block], *, sums: StateSums | None = None) -> Iterator[Scores]:
        """Pack by pack; the prefix of a block is computed once."""
        body, head = self.module.base_model, find_head(self.module)
        for block in blocks:
            with torch.inference_mode():
                prefix = compute_prefix(body, block.prefix, self.device)
            for pack in block.packs:
                with torch.inference_mode():
                    hidden, targets = answer_states(body, head, pack, prefix)
                    values = token_logprobs(hidden, targets, head).cpu()
                    _, _, where = predictions(pack)
                    if sums is not None:
                        sums.update((row, hidden[index].float().sum(0).cpu().numpy()) for row, index in where.items())
                    scores = {row: values[index].tolist() for row, index in where.items()}
                yield scores

    def use_packing(self, on: bool) -> None:
        """Install the packed kernel, or the model's own attention again."""
        config = self.module.config
        if not on:
            if self._own_attention is not None:
                self.module.set_attn_implementation(self._own_attention)
            return
        if getattr(config.get_text_config(), "attention_chunk_size", None):
            raise NotImplementedError("chunked attention")
        self._own_attention = config._attn_implementation  # noqa: SLF001  has no public name
        self.module.set_attn_implementation(KERNEL)
        self.packable_length = self._longest_packable()

    def _longest_packable(self) -> int | None:
        """Up to which length rows do not depend on what else is in a pack, and are masked as the model does.

        Dynamic and longrope frequencies are chosen by the longest position of a forward pass. A window that an
        architecture gives to its mask alone (PhiMoE) does not reach the kernel, whose mask is another.
        """
        config = self.module.config.get_text_config()
        limits = []
        rope = getattr(config, "rope_parameters", None) or {}
        for parameters in rope.values() if all(isinstance(v, dict) for v in rope.values()) else [rope]:
            if parameters.get("rope_type") in CHANGING_ROPE:
                original = parameters.get("original_max_position_embeddings")
                limits.append(original or getattr(config, "original_max_position_embeddings", None))
                limits.append(config.max_position_embeddings)
        window = getattr(config, "sliding_window", None)
        if window and getattr(config, "use_sliding_window", True):
            limits.append(None if window in windows_of(self.module.base_model, self.device) else window)
        return min((int(n) for n in limits if n), default=None)

    @contextmanager
    def rounded(self) -> Iterator[None]:
        """Embeddings are moved by one rounding step, after which all that follows rounds otherwise."""
        with hooked((self.module.get_input_embeddings(), _dither(next(self.module.parameters()).dtype))):
            yield

    # -- writing ---------------------------------------------------------------

    def generate(
        self, prompts: Sequence[Ids], max_new_tokens: int, *, seed: int | None = None, progress: Progress | None = None
    ) -> list[Continuation]:
        """Batched with padding on the left."""
        return continue_prompts(self.module, self.tokenizer, prompts, max_new_tokens, seed=seed, progress=progress)

    # -- provenance ------------------------------------------------------------

    def scope(self) -> tuple[str, ...]:
        """The content of the weights is hashed at every call."""
        return (
            fingerprint(self.module),
            type(self.module).__qualname__,
            self.module.config.to_json_string(),
            self.dtype,
            self.device.type,
            torch.__version__,
            transformers.__version__,
        )

    def describe(self) -> dict[str, Any]:
        """What computes, and with what."""
        config = self.module.config
        return {
            "architecture": self.architecture,
            "parameters": sum(p.numel() for p in self.module.parameters()),
            "fingerprint": fingerprint(self.module),
            "revision": getattr(config, "_commit_hash", None),
            "dtype": self.dtype,
            "dtype_reason": self.dtype_reason,
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "attention": config._attn_implementation,  # noqa: SLF001
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }


def _dither(dtype: torch.dtype) -> Callable[[Any, Any, Any], Any]:
    """A hook that moves every second coordinate to about the next number of the dtype that is computed in."""
    step = 1 + torch.finfo(dtype).eps

    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        states = states_of(output)
        even = torch.arange(states.shape[-1], device=states.device) % 2 == 0
        return with_states(output, torch.where(even, states, states * step))

    return hook
