"""Answers of a model's own: greedy, or sampled as it would speak."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer

from conviction.core.protocols import Progress
from conviction.models.engine.logprobs import last_positions
from conviction.models.engine.packing import Ids
from conviction.models.engine.protocol import Continuation
from conviction.models.prompts import PromptEncoder
from conviction.models.states import reading_on

# A step reads all weights, whatever the number of rows: 32 rows take less than twice as long as 8 on two CPU cores.
MOST_ROWS = 32
WORTHWHILE = 32  # tokens that all prompts of a batch must have in common for them to be read once
MOST_TOKENS = 8192  # keys and values of a batch, with what is to be written; a GB for an 8B model


@torch.inference_mode()
def continue_prompts(
    module: Any,
    tokenizer: Any,
    prompts: Sequence[Ids],
    max_new_tokens: int,
    *,
    seed: int | None,
    progress: Progress | None,
) -> list[Continuation]:
    """What a transformers model writes after each prompt, in order; batched with padding on the left.

    seed  None: greedy; else sampled from the whole distribution at temperature 1, and torch's
          own state of chance is left as it was
    """
    device = next(module.parameters()).device
    eos = module.generation_config.eos_token_id
    ends = {e for e in (eos if isinstance(eos, list) else [eos]) if e is not None}
    ends |= PromptEncoder(tokenizer, None).stop_ids()
    pad = next((t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id) if t is not None), 0)
    written: list[Continuation] = []
    with _generation(module, max_new_tokens, pad, ends, sampled=seed is not None), _chance(seed, device):
        for batch in _batches(prompts, max_new_tokens):
            width = max(map(len, batch))
            shared = _shared(batch) if _keeps_everything(module) else 0
            rows = [(p[:shared], width - len(p), p[shared:]) for p in batch]
            ids = torch.tensor([begin + (pad,) * gap + own for begin, gap, own in rows], device=device)
            mask = torch.tensor([[1] * shared + [0] * gap + [1] * len(own) for _, gap, own in rows], device=device)
            last = last_positions(module, 1, width)
            more: dict[str, Any] = {} if isinstance(last, int) else {"logits_to_keep": last}
            if shared:
                begun = torch.tensor([batch[0][:shared]], device=device)
                past = DynamicCache(config=module.config)
                module.base_model(input_ids=begun, **reading_on(module.base_model, past))
                past.batch_repeat_interleave(len(batch))
                more |= reading_on(module, past)
            out = module.generate(input_ids=ids, attention_mask=mask, **more)
            for row in out[:, width:].tolist():
                stop = next((i for i, token in enumerate(row) if token in ends), None)
                kept = row if stop is None else row[:stop]
                written.append(Continuation(tuple(kept), ended=stop is not None))
            if progress is not None:
                progress(len(written), len(prompts))
    return written


def _batches(prompts: Sequence[Ids], max_new_tokens: int) -> Iterator[list[Ids]]:
    """In order, as many at once as there is room for."""
    batch: list[Ids] = []
    for prompt in prompts:
        widest = max(map(len, [*batch, prompt])) + max_new_tokens
        if batch and (len(batch) == MOST_ROWS or widest * (len(batch) + 1) > MOST_TOKENS):
            yield batch
            batch = []
        batch.append(prompt)
    if batch:
        yield batch


def _shared(batch: Sequence[Ids]) -> int:
    """How many tokens all prompts begin with alike, where that is worth a pass; each keeps one at least for itself."""
    first, last = min(batch), max(batch)  # in the order of words, what these two share all share
    alike = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    alike = min(alike, min(map(len, batch)) - 1)
    return alike if len(batch) > 1 and alike >= WORTHWHILE else 0


def _keeps_everything(module: Any) -> bool:
    """Whether padding between what is shared and what is not stays without effect.

    Its cache must be keys and values of all tokens: no windows, and no states that padding would run through.
    And it must be told positions: one that counts tokens itself would count padding.
    """
    cache = DynamicCache(config=module.config)
    whole = not getattr(module, "_is_stateful", False) and all(type(layer) is DynamicLayer for layer in cache.layers)
    return whole and "position_ids" in inspect.signature(module.forward).parameters


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
