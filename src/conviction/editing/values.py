"""What a memory must say: keys of a subject, and the values that make a model go on as a fact demands.

A value is found by gradient descent on a vector that is added at the subject's
last token (ROME, Meng et al. 2202.05262, §3.1): to what the MLP puts out
(ROME), or the block (MEMIT, 2210.07229). Steps and bounds are shares of the
length of the residual stream there, so that they mean the same in every model.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import DynamicCache

from conviction.editing.descent import Descent
from conviction.editing.requests import Request, Row
from conviction.editing.sites import Site
from conviction.errors import InputError
from conviction.models.engine.logprobs import checked_head, token_logprobs
from conviction.models.engine.packing import Ids
from conviction.models.hf import HFModel
from conviction.models.states import Stop, fork, hooked, reading_on, states_of, stopping, with_states

__all__ = ["Found", "block_states", "find_values", "keys", "keys_and_states", "residual_scale"]

LINEAR = 0.1  # share of a response that may not be proportional: rounding in half precision is far below it
TOKENS = 256  # in one pass of the descent: attention between rows is masked, but paid for


@dataclass(frozen=True, eq=False)
class Found:
    """Changes [facts, hidden] of what is put out at the subjects, and the target's nats per token under them."""

    changes: Tensor
    after: Tensor


@dataclass(frozen=True)
class _Batch:
    """Rows of several requests one behind the other, cut at their subject's last token.

    What stands before it never sees the change: it is read once, and kept as
    keys and values (``past``). What is left begins with the subject's last token.
    A mask keeps the rows apart; nothing is padded.
    """

    past: DynamicCache | None  # of one sequence: the P tokens before all rows' subjects
    ids: Tensor  # [1, S] from the subject's last token on
    mask: Tensor | dict[str, Tensor]  # [1, 1, S, P + S] 0 or -inf, maybe one for each type of layer
    positions: Tensor  # [1, S]
    subjects: Tensor  # [rows] where in S each begins
    owner: Tensor  # [rows] which request
    where: Tensor  # [n] what predicts a token of a target
    row: Tensor  # [n] its row
    targets: Tensor  # [n]
    essence: Tensor  # [requests] where in S each request's essence is

    def read(self, model: HFModel) -> Tensor:
        """[S, hidden] last hidden states."""
        past = fork(self.past) if self.past is not None else None
        out = model.module.base_model(
            input_ids=self.ids,
            attention_mask=self.mask,
            position_ids=self.positions,
            **reading_on(model.module.base_model, past),
        )
        hidden: Tensor = out.last_hidden_state[0]
        return hidden


def find_values(
    model: HFModel,
    requests: Sequence[Request],
    site: Site,
    place: Literal["mlp", "block"],
    how: Descent,
    *,
    step: Callable[[int, int], None] | None = None,
) -> Found:
    """For each request the change at ``place`` of ``site`` that makes its target likely; they do not mix."""
    results = []
    for group in _groups(requests):
        results.append(_descend(model, requests[group], site, place, how))
        if step is not None:
            step(group.stop, len(requests))
    return Found(torch.cat([f.changes for f in results]), torch.cat([f.after for f in results]))


def _groups(requests: Sequence[Request]) -> list[slice]:
    """Requests that go through the model together."""
    groups, start, tokens = [], 0, 0
    for i, request in enumerate(requests):
        size = sum(len(row.ids) - row.subject + len(request.target) for row in request.contexts)
        if i > start and tokens + size > TOKENS:
            groups.append(slice(start, i))
            start, tokens = i, 0
        tokens += size
    return [*groups, slice(start, len(requests))]


def _descend(
    model: HFModel, requests: Sequence[Request], site: Site, place: Literal["mlp", "block"], how: Descent
) -> Found:
    batch = _lay_out(model, requests)
    head = checked_head(model.module, exact=False)
    lengths = _residual_lengths(model, batch, site, len(requests))
    unit = how.step_size * lengths / model.module.config.get_text_config().hidden_size ** 0.5
    change = torch.zeros(len(requests), head.weight.shape[1], device=model.device, requires_grad=True)
    first = torch.zeros_like(change)
    second = torch.zeros_like(change)
    source = site.linear if place == "mlp" else site.block
    reference: Tensor | None = None
    losses = torch.zeros(len(requests))
    moving = torch.ones(len(requests), dtype=torch.bool, device=model.device)
    for number in range(1, how.steps + 2):
        with hooked((source, _adding(change, batch))):
            hidden = batch.read(model)
        by_row = _target_losses(hidden, head, batch)
        losses = torch.stack([row.mean() for row in by_row])
        # By the median: one context that resists, such as a chat, would have the value pushed far past the others.
        moving &= torch.stack([row.detach().median() for row in by_row]) > how.good_enough
        if number > how.steps or not bool(moving.any()):
            break
        about = hidden[batch.essence]
        thought = torch.log_softmax(head.logits(about, slice(None)), dim=-1)
        reference = thought.detach() if reference is None else reference
        drift = (reference.exp() * (reference - thought)).sum(-1)
        size = (change / lengths[:, None]).square().sum(-1)
        total = (losses + how.kl_factor * drift + how.v_weight_decay * size).sum()
        (gradient,) = torch.autograd.grad(total, change)
        with torch.no_grad():
            first.lerp_(gradient, 0.1)
            second.lerp_(gradient.square(), 0.001)
            move = (first / (1 - 0.9**number)) / ((second / (1 - 0.999**number)).sqrt() + 1e-8)
            change -= torch.where(moving[:, None], unit[:, None] * move, 0.0)
            bound = how.clamp_norm_factor * lengths / change.norm(dim=-1).clamp(min=1e-12)
            change *= bound.clamp(max=1.0)[:, None]
    return Found(change.detach().cpu(), losses.detach().cpu())


@torch.no_grad()
def _lay_out(model: HFModel, requests: Sequence[Request]) -> _Batch:
    rows: list[tuple[int, Row, tuple[int, ...]]] = []
    for owner, request in enumerate(requests):
        rows += [(owner, row, request.target) for row in request.contexts]
        rows.append((owner, Row(request.essence.ids[: request.essence.subject + 1], request.essence.subject), ()))
    device = model.device
    heads = [row.ids[: row.subject] for _, row, _ in rows]
    tails = [(row.ids + target[:-1])[row.subject :] for _, row, target in rows]
    starts = [0, *itertools.accumulate(map(len, tails))]
    asked = [
        (start + len(row.ids) - 1 - row.subject + j, i)
        for i, ((_, row, target), start) in enumerate(zip(rows, starts, strict=False))
        for j in range(len(target))
    ]
    here = torch.tensor([i for i, tail in enumerate(tails) for _ in tail], device=device)
    before = torch.tensor([i for i, head in enumerate(heads) for _ in head], device=device, dtype=torch.long)
    read = torch.tensor([j for head in heads for j in range(len(head))], device=device, dtype=torch.long)
    places = torch.tensor([len(h) + j for h, t in zip(heads, tails, strict=True) for j in range(len(t))], device=device)
    seen = torch.cat([here[:, None] == before, torch.tril(here[:, None] == here)], dim=1)
    back = places[:, None] - torch.cat([read, places])
    return _Batch(
        past=_past(model, tuple(itertools.chain(*heads)), before, read),
        ids=torch.tensor([tuple(itertools.chain(*tails))], device=device),
        mask=_mask(model, seen, back),
        positions=places[None],
        subjects=torch.tensor(starts[:-1], device=device),
        owner=torch.tensor([owner for owner, _, _ in rows], device=device),
        where=torch.tensor([place for place, _ in asked], device=device),
        row=torch.tensor([row for _, row in asked], device=device),
        targets=torch.tensor([token for _, _, target in rows for token in target], device=device),
        essence=torch.tensor([starts[i] for i, (_, _, target) in enumerate(rows) if not target], device=device),
    )


def _mask(model: HFModel, seen: Tensor, back: Tensor) -> Tensor | dict[str, Tensor]:
    """seen, back: [S, P + S] whether a token is in the row before another, and how far back."""

    def additive(visible: Tensor) -> Tensor:
        zeros = torch.zeros(visible.shape, device=visible.device, dtype=model.dtype)
        return zeros.masked_fill(~visible, float("-inf"))[None, None]

    config = model.module.config.get_text_config()
    window, types = getattr(config, "sliding_window", None), set(getattr(config, "layer_types", None) or ())
    if not window or types == {"full_attention"} or not bool((seen & (back >= window)).any()):
        return additive(seen)
    near = additive(seen & (back < window))
    return {"full_attention": additive(seen), "sliding_attention": near} if "full_attention" in types else near


def _past(model: HFModel, ids: Ids, here: Tensor, places: Tensor) -> DynamicCache | None:
    """Keys and values of all heads' tokens, one head behind the other. here, places: [P] row and position of each."""
    if not ids:
        return None
    past = DynamicCache()  # of no config: a sliding window would cut what is read again
    model.module.base_model(
        input_ids=torch.tensor([ids], device=model.device),
        attention_mask=_mask(model, torch.tril(here[:, None] == here), places[:, None] - places),
        position_ids=places[None],
        **reading_on(model.module.base_model, past),
    )
    return past


def _adding(change: Tensor, batch: _Batch) -> Any:
    """A hook that adds each request's change at its subject's last token, in all its rows."""

    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        states = states_of(output)
        return with_states(output, states.index_add(1, batch.subjects, change[batch.owner][None].to(states.dtype)))

    return hook


def _target_losses(hidden: Tensor, head: Any, batch: _Batch) -> list[Tensor]:
    """For each request [contexts], mean nats per token of its target after each of them."""
    values = -token_logprobs(hidden[batch.where], batch.targets, head)
    sums = torch.zeros(len(batch.owner), device=values.device).index_add(0, batch.row, values)
    counts = torch.bincount(batch.row, minlength=len(batch.owner))
    means = sums / counts.clamp(min=1)
    # The essence is followed by nothing.
    return [means[(counts > 0) & (batch.owner == request)] for request in range(len(batch.essence))]


@torch.no_grad()
def _residual_lengths(model: HFModel, batch: _Batch, site: Site, count: int) -> Tensor:
    """[requests] median length, over its rows, of what the block puts out at the subject."""
    results: list[Tensor] = []

    def hook(_module: Any, _inputs: Any, output: Any) -> None:
        results.append(states_of(output)[0, batch.subjects].float().norm(dim=-1))

    with hooked((site.block, hook), (site.block, stopping)), suppress(Stop):
        batch.read(model)
    return torch.stack([results[0][batch.owner == i].median() for i in range(count)])


def keys(model: HFModel, requests: Sequence[Request], site: Site) -> Tensor:
    """fp32 [facts, width] what the memory is asked with at the subject's last token, mean over its contexts."""
    return keys_and_states(model, requests, site, site)[0]


def block_states(model: HFModel, requests: Sequence[Request], site: Site) -> Tensor:
    """fp32 [facts, hidden] what the block puts out there, mean over contexts."""
    return keys_and_states(model, requests, site, site)[1]


@torch.no_grad()
def residual_scale(model: HFModel, site: Site, request: Request) -> float:
    """By how much the block's output changes with what its memory puts out, at a subject's last token; mostly 1.

    Granite scales what a block adds by its residual multiplier. Raises InputError where the block
    norms it (Gemma 2 and 3, OLMo 2): no change of the memory then gives the change that is wanted.
    """
    row = request.keyed[0]
    ids = torch.tensor([row.ids[: row.subject + 1]], device=model.device)

    def last_state(shift: Tensor | None) -> Tensor:
        outputs: list[Tensor] = []

        def keep(_module: Any, _inputs: Any, output: Any) -> None:
            outputs.append(states_of(output)[0, -1].float())

        def push(_module: Any, _inputs: Any, output: Any) -> Any:
            return output if shift is None else output + shift.to(output.dtype)

        with hooked((site.linear, push), (site.block, keep), (site.block, stopping)), suppress(Stop):
            model.module.base_model(input_ids=ids, use_cache=False)
        return outputs[0]

    before = last_state(None)
    # Of the state's own length: lost neither in rounding nor, in a norm, for being small.
    push = torch.randn(len(before), generator=torch.Generator().manual_seed(0)).to(before.device)
    push *= before.norm() / push.norm()
    change = last_state(push) - before
    scale = float(change @ push / (push @ push))
    if float((change - scale * push).norm()) > LINEAR * float(change.norm()):
        raise InputError(
            f"{type(model.module).__name__} norms what an MLP puts out before adding it, so that memit cannot "
            f"give a block the output that a fact needs (block {site.layer})",
            hint="use rome, whose value is sought where the MLP writes",
        )
    return scale


@torch.no_grad()
def keys_and_states(model: HFModel, requests: Sequence[Request], site: Site, last: Site) -> tuple[Tensor, Tensor]:
    """Keys of ``site`` and states of ``last``, which is the same or a later one, in one pass a fact."""
    keys: list[Tensor] = []
    states: list[Tensor] = []
    for request in requests:
        rows = [row.ids[: row.subject + 1] for row in request.keyed]  # what follows is not seen from there
        width = max(map(len, rows))
        width += -width % 16
        ids = torch.tensor([(0,) * (width - len(row)) + row for row in rows], device=model.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)

        def key(_module: Any, inputs: Any, _output: Any) -> None:
            keys.append(inputs[0][:, -1].float().mean(0).cpu())

        def state(_module: Any, _inputs: Any, output: Any) -> None:
            states.append(states_of(output)[:, -1].float().mean(0).cpu())

        with hooked((site.linear, key), (last.block, state), (last.block, stopping)), suppress(Stop):
            model.module.base_model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=(mask.cumsum(1) - 1).clamp(min=0),
                use_cache=False,
            )
    return torch.stack(keys), torch.stack(states)
