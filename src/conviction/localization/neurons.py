"""Knowledge neurons: coordinates of MLP keys that an answer hangs on (Dai et al. 2104.08696).

Integrated gradients from no activation to the actual one, at the last token,
where the answer is read. Suppressed and doubled, they are compared with as many
neurons of the same layers drawn at random.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from conviction.editing.sites import Site, find_sites
from conviction.localization.records import NeuronReading
from conviction.localization.tracing import Statement
from conviction.models.engine.logprobs import checked_head
from conviction.models.hf import HFModel
from conviction.models.states import fork, hooked, reading_on

__all__ = ["attributions", "chosen_neurons", "read_neurons"]

STEPS = 20  # of the integral
COARSE = 0.3  # share of the largest attribution that counts
SHARED = 0.5  # of the wordings of a statement that must agree


def attributions(model: HFModel, statement: Statement) -> Tensor:
    """[layers, width] of the answer's probability, one layer's neurons at a time."""
    sites = find_sites(model)
    past = _past(model, statement.ids)
    rows = []
    for site in sites:
        with torch.no_grad():
            actual = _activation(model, site, statement, past)
        scales = (torch.arange(STEPS, device=model.device) + 0.5) / STEPS  # midpoints: a closer sum than ends
        path = (scales[:, None] * actual).requires_grad_(True)

        def put(_module: Any, inputs: Any, path: Tensor = path) -> Any:
            return (path[:, None].to(inputs[0].dtype), *inputs[1:])

        handle = site.linear.register_forward_pre_hook(put)
        try:
            shares = _answer(model, statement, past, STEPS)
        finally:
            handle.remove()
        (gradient,) = torch.autograd.grad(shares.sum(), path)
        rows.append((actual * gradient.mean(0)).cpu())
    return torch.stack(rows)


def chosen_neurons(result: Sequence[Tensor]) -> tuple[tuple[int, int], ...]:
    """(layer, index) of neurons over 0.3 of the largest, in at least half of the wordings of one statement."""
    counts: Counter[tuple[int, int]] = Counter()
    for scores in result:
        where = (scores > COARSE * scores.max()).nonzero().tolist()
        counts.update((int(a), int(b)) for a, b in where)
    return tuple(sorted(n for n, times in counts.items() if times >= SHARED * len(result)))


@torch.no_grad()
def read_neurons(
    model: HFModel, statement: Statement, neurons: tuple[tuple[int, int], ...], *, seed: int = 0
) -> NeuronReading:
    """What happens to the answer when the neurons are silenced or doubled; and with others in their place."""
    width = find_sites(model)[0].width
    chance = torch.Generator().manual_seed(seed)
    drawn = tuple((layer, int(torch.randint(width, (1,), generator=chance))) for layer, _ in neurons)
    past = _past(model, statement.ids)
    base = float(_answer(model, statement, past, 1)[0])

    def change(chosen: tuple[tuple[int, int], ...], factor: float) -> float:
        return float(_scaled(model, statement, past, chosen, factor)[0]) / base - 1

    return NeuronReading(
        fact=statement.fact,
        neurons=neurons,
        suppressed=change(neurons, 0.0),
        enhanced=change(neurons, 2.0),
        random_suppressed=change(drawn, 0.0),
        random_enhanced=change(drawn, 2.0),
    )


def _scaled(
    model: HFModel, statement: Statement, past: DynamicCache | None, neurons: Sequence[tuple[int, int]], factor: float
) -> Tensor:
    sites = find_sites(model)
    handles = []
    for layer in sorted({layer for layer, _ in neurons}):
        indices = torch.tensor([i for at, i in neurons if at == layer], device=model.device)

        def scale(_module: Any, inputs: Any, indices: Tensor = indices) -> Any:
            activation = inputs[0].clone()
            activation[..., indices] *= factor
            return (activation, *inputs[1:])

        handles.append(sites[layer].linear.register_forward_pre_hook(scale))
    try:
        return _answer(model, statement, past, 1)
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _past(model: HFModel, ids: tuple[int, ...]) -> DynamicCache | None:
    """Keys and values of all tokens but the last."""
    if len(ids) < 2:
        return None
    cache = DynamicCache()
    model.module.base_model(
        input_ids=torch.tensor([ids[:-1]], device=model.device), **reading_on(model.module.base_model, cache)
    )
    return cache


def _answer(model: HFModel, statement: Statement, past: DynamicCache | None, rows: int) -> Tensor:
    """[rows] probability of the answer after the last token, read in several rows at once."""
    mine = fork(past, lambda kept: kept.expand(rows, -1, -1, -1)) if past is not None else None
    last = len(statement.ids) - 1
    out = model.module.base_model(
        input_ids=torch.full((rows, 1), statement.ids[-1], device=model.device),
        attention_mask=torch.ones(rows, last + 1, dtype=torch.long, device=model.device),
        position_ids=torch.full((rows, 1), last, device=model.device),
        **reading_on(model.module.base_model, mine),
    )
    logits = checked_head(model.module).logits(out.last_hidden_state[:, -1], slice(None))
    return torch.softmax(logits, dim=-1)[:, statement.answer]


def _activation(model: HFModel, site: Site, statement: Statement, past: DynamicCache | None) -> Tensor:
    """fp32 [width] key of the last token."""
    results: list[Tensor] = []

    def keep(_module: Any, inputs: Any, _output: Any) -> None:
        results.append(inputs[0][0, -1].float())

    with hooked((site.linear, keep)):
        _answer(model, statement, past, 1)
    return results[0]
