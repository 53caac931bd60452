"""Causal tracing: which states carry an answer (Meng et al. 2202.05262 §2).

Noise drowns the subject's embeddings and the answer is lost; one state at a time
is put back as it was without noise, and what comes back of the answer is that
state's effect. Tokens before the restored one do not see the change, so they
are read once for all layers, as keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from conviction.data.facts import Fact
from conviction.editing.requests import locate
from conviction.errors import InputError, ModelError
from conviction.localization.records import Kind, Trace
from conviction.models.engine.logprobs import checked_head
from conviction.models.hf import HFModel
from conviction.models.lora import decoder_layers
from conviction.models.states import Hook, fork, hooked, reading_on, skipped, states_of, with_states

ATTENTION = ("self_attn", "attn", "attention")
TOKENS = 4096  # in one pass
CHUNK = 6  # layers whose sites are restored in one pass; what lies before the first of them is not run


@dataclass(frozen=True)
class Statement:
    """A fact as the model reads it. subject: [first, end) of its tokens; answer: the token that is to follow."""

    fact: str
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    subject: tuple[int, int]
    answer: int
    answer_text: str
    probability: float


@dataclass(frozen=True)
class Setup:
    """How tracing is done. noise: standard deviation in embedding units; window: layers restored together."""

    noise: float
    samples: int
    window: int
    seed: int = 0


@torch.no_grad()
def noise_level(model: HFModel, facts: Sequence[Fact]) -> float:
    """Three standard deviations of the embeddings of the facts' subjects."""
    ids = sorted({i for f in facts for i in model.encoder.encode_continuation(f.subject)})
    # As they enter the model: Gemma scales its embeddings on the way.
    return 3 * float(_embed(model, tuple(ids)).float().std())


@torch.inference_mode()
def build_statement(model: HFModel, fact: Fact, *, own_answer: bool) -> Statement | None:
    """A statement and its answer's first token; None if the model does not answer so.

    own_answer  trace what the model itself says first, whatever the fact's target
    """
    if getattr(model.module, "_is_stateful", False):
        raise ModelError(
            f"{type(model.module).__name__} keeps a recurrent state, not keys and values that a trace could begin from",
            hint="localize needs a transformer whose layers are all attention",
        )
    ids, subject = locate(model, fact.prompt, fact.subject, model.encoder.bos())
    hidden = model.module.base_model(input_ids=torch.tensor([ids], device=model.device), use_cache=False)
    logits = checked_head(model.module).logits(hidden.last_hidden_state[0, -1:], slice(None))
    shares = torch.softmax(logits[0], dim=-1)
    first = int(shares.argmax())
    wanted = model.encoder.encode_continuation(fact.target)[0]
    if first != wanted and not own_answer:
        return None
    return Statement(
        fact=fact.id,
        ids=ids,
        tokens=tuple(model.tokenizer.decode([i]) for i in ids),
        subject=subject,
        answer=first,
        answer_text=model.tokenizer.decode([first]),
        probability=float(shares[first]),
    )


@torch.inference_mode()
def trace(model: HFModel, statement: Statement, kind: Kind, setup: Setup, *, control: bool = False) -> Trace:
    """The effect of every site of one kind. ``control``: noise on as many tokens elsewhere, drawn at random."""
    span = _elsewhere(statement, setup) if control else statement.subject
    embedded = _embed(model, statement.ids)
    noisy = embedded.repeat(setup.samples, 1, 1)
    chance = torch.Generator().manual_seed(setup.seed)
    drawn = torch.randn(setup.samples, span[1] - span[0], embedded.shape[-1], generator=chance) * setup.noise
    noisy[:, span[0] : span[1]] += drawn.to(noisy.device, noisy.dtype)
    places = _places(model, kind)
    blocks = list(decoder_layers(model.module))
    clean, _, _ = _run(model, embedded, places)
    entering, cache, drowned = _run(model, noisy, blocks)
    answer = answer_share(model, drowned, statement.answer).cpu().mean()
    effects = [[0.0] * len(places) for _ in statement.ids]
    for token in range(span[0], len(statement.ids)):  # before the noise there is nothing to restore
        result = _restored(model, statement, token, [noisy, *entering], cache, clean, places, kind, setup)
        effects[token] = (result - answer).tolist()
    return Trace(
        fact=statement.fact,
        kind=kind,
        control=control,
        tokens=statement.tokens,
        corrupted=span,
        answer=statement.answer_text,
        clean=statement.probability,
        noisy=float(answer),
        effects=tuple(tuple(round(x, 6) for x in row) for row in effects),
    )


def _restored(
    model: HFModel,
    statement: Statement,
    token: int,
    noisy: Sequence[Tensor],
    cache: DynamicCache,
    clean: list[Tensor],
    places: Sequence[nn.Module],
    kind: Kind,
    setup: Setup,
) -> Tensor:
    """[layers] probability of the answer with this token's state put back in each layer (or window around it).

    noisy  what enters each block (and leaves the last) when nothing is put back
    """
    samples, width = setup.samples, len(statement.ids) - token
    at_once = max(1, min(CHUNK, TOKENS // (samples * width)))
    blocks = decoder_layers(model.module)
    parts = []
    for start in range(0, len(places), at_once):
        centres = list(range(start, min(start + at_once, len(places))))
        rows = len(centres) * samples
        first = start if kind == "block" else max(0, start - setup.window // 2)
        state = noisy[first][:, token:].repeat(len(centres), 1, 1)
        past = fork(cache, _beginning(token, len(centres))) if token else None

        def restoring(layer: int, centres: list[int] = centres) -> Hook:
            half = 0 if kind == "block" else setup.window // 2
            reach = [i for i, centre in enumerate(centres) if centre - half <= layer <= centre + half]

            def hook(_module: Any, _inputs: Any, output: Any) -> Any:
                states = states_of(output).clone()
                for i in reach:
                    states[i * samples : (i + 1) * samples, 0] = clean[layer][0, token]
                return with_states(output, states)

            return hook

        touched = range(first, min(len(places), centres[-1] + 1 + (0 if kind == "block" else setup.window // 2)))
        with (
            hooked(*((places[layer], restoring(layer)) for layer in touched)),
            _entered(blocks[first], state) if first else nullcontext(),  # the first one enters what embeddings become
            skipped(blocks, first),
        ):
            out = model.module.base_model(
                inputs_embeds=noisy[0][:, token:].repeat(len(centres), 1, 1),
                attention_mask=torch.ones(rows, len(statement.ids), dtype=torch.long, device=model.device),
                position_ids=torch.arange(token, len(statement.ids), device=model.device).expand(rows, width),
                **reading_on(model.module.base_model, past),
            )
        shares = answer_share(model, out.last_hidden_state[:, -1], statement.answer).cpu()
        parts.append(shares.view(len(centres), samples).mean(1).cpu())
    return torch.cat(parts)


def _beginning(length: int, copies: int) -> Callable[[Tensor], Tensor]:
    """Keys or values of the first tokens, for several rows of each sample."""
    return lambda kept: kept[:, :, :length].repeat(copies, 1, 1, 1)


@contextmanager
def _entered(block: nn.Module, state: Tensor) -> Iterator[None]:
    """The block reads ``state``, whatever it is given."""
    handle = block.register_forward_pre_hook(lambda _module, inputs: (state, *inputs[1:]))
    try:
        yield
    finally:
        handle.remove()


def _run(model: HFModel, embedded: Tensor, places: Sequence[nn.Module]) -> tuple[list[Tensor], DynamicCache, Tensor]:
    """What every place puts out, keys and values, and the last hidden state [rows, hidden]."""
    outputs: list[Tensor] = [embedded] * len(places)

    def keep(layer: int) -> Hook:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            outputs[layer] = states_of(output)

        return hook

    cache = DynamicCache()  # of no config: a sliding window would cut what is read again
    with hooked(*((place, keep(layer)) for layer, place in enumerate(places))):
        out = model.module.base_model(
            inputs_embeds=embedded,
            attention_mask=torch.ones(embedded.shape[:2], dtype=torch.long, device=model.device),
            **reading_on(model.module.base_model, cache),
        )
    return outputs, cache, out.last_hidden_state[:, -1]


def _embed(model: HFModel, ids: tuple[int, ...]) -> Tensor:
    """[1, tokens, hidden]"""
    result: Tensor = model.module.get_input_embeddings()(torch.tensor([ids], device=model.device))
    return result


def answer_share(model: HFModel, hidden: Tensor, answer: int) -> Tensor:
    """[rows] probability of the answer."""
    logits = checked_head(model.module).logits(hidden, slice(None))
    return torch.softmax(logits, dim=-1)[:, answer]


def _places(model: HFModel, kind: Kind) -> list[nn.Module]:
    """The modules whose output is restored, one a layer. Raises InputError for blocks without such a part."""
    blocks = list(decoder_layers(model.module))
    if kind == "block":
        return blocks
    names = ATTENTION if kind == "attention" else ("mlp",)
    results = []
    for block in blocks:
        part = next((getattr(block, name) for name in names if hasattr(block, name)), None)
        if part is None:
            raise InputError(
                f"{type(model.module).__name__} has blocks without {' or '.join(names)}",
                hint="trace whole blocks only: --kinds block",
            )
        results.append(part)
    return results


def _elsewhere(statement: Statement, setup: Setup) -> tuple[int, int]:
    """As many tokens as the subject has, drawn from outside it; fewer if there is no room."""
    first, end = statement.subject
    for length in range(end - first, 0, -1):
        starts = [s for s in range(len(statement.ids) - length + 1) if (s + length <= first or s >= end)]
        if starts:
            chance = torch.Generator().manual_seed(setup.seed + len(statement.ids))
            start = starts[int(torch.randint(len(starts), (1,), generator=chance))]
            return start, start + length
    return statement.subject
