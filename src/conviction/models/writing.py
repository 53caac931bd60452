"""Answers of a model's own: greedy, or sampled as it would speak."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig

from conviction.core.protocols import Generation, Progress
from conviction.models.logprobs import last_positions
from conviction.models.packing import Ids

__all__ = ["continue_prompts"]


@torch.inference_mode()
def continue_prompts(
    module: Any,
    tokenizer: Any,
    prompts: Sequence[Ids],
    max_new_tokens: int,
    *,
    seed: int | None,
    batch_size: int,
    progress: Progress | None,
) -> list[Generation]:
    """What a transformers model writes after each prompt, in order; batched with padding on the left.

    seed  None: greedy; else sampled from the whole distribution at temperature 1, and torch's
          own state of chance is left as it was
    """
    device = next(module.parameters()).device
    eos = module.generation_config.eos_token_id
    ends = {e for e in [*(eos if isinstance(eos, list) else [eos]), tokenizer.eos_token_id] if e is not None}
    pad = next((t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id) if t is not None), 0)
    written: list[Generation] = []
    with _generation(module, max_new_tokens, pad, ends, sampled=seed is not None), _chance(seed, device):
        for start in range(0, len(prompts), batch_size):
            batch = prompts[start : start + batch_size]
            width = max(map(len, batch))
            ids = torch.tensor([(pad,) * (width - len(p)) + p for p in batch], device=device)
            mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in batch], device=device)
            last = last_positions(module, 1, width)
            out = module.generate(
                input_ids=ids, attention_mask=mask, **({} if isinstance(last, int) else {"logits_to_keep": last})
            )
            for row in out[:, width:].tolist():
                stop = next((i for i, token in enumerate(row) if token in ends), None)
                kept = row if stop is None else row[:stop]
                text = tokenizer.decode(kept, skip_special_tokens=True)
                written.append(Generation(text=text, token_ids=tuple(kept), ended=stop is not None))
            if progress is not None:
                progress(len(written), len(prompts))
    return written


@contextmanager
def _generation(module: Any, max_new_tokens: int, pad: int, ends: set[int], *, sampled: bool) -> Iterator[None]:
    """Our configuration in place of the model's own.

    Its own may ask for beams, sampling or penalties, and would fill what is left
    open in a configuration given to generate().
    """
    how: dict[str, Any] = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0} if sampled else {}
    ours = GenerationConfig(
        max_new_tokens=max_new_tokens,
        pad_token_id=pad,
        eos_token_id=sorted(ends) or None,
        **{"do_sample": False, **how},
    )
    own, module.generation_config = module.generation_config, ours
    try:
        yield
    finally:
        module.generation_config = own


@contextmanager
def _chance(seed: int | None, device: torch.device) -> Iterator[None]:
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
