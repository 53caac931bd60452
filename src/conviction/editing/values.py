"""What a memory must say: keys of a subject, and the values that make a model go on as a fact demands.

A value is found by gradient descent on a vector that is added at the subject's
last token (ROME, Meng et al. 2202.05262, §3.1): to what the MLP puts out
(ROME), or the block (MEMIT, 2210.07229). Steps and bounds are shares of the
length of the residual stream there, so that they mean the same in every model.
"""

from __future__ import annotations

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
from conviction.models.hf import HFModel
from conviction.models.logprobs import find_head, token_logprobs
from conviction.models.states import Stop, fork, hooked, states_of, stopping, with_states

__all__ = ["Found", "block_states", "find_values", "keys"]

TOKENS = 1536  # in one pass of the descent


@dataclass(frozen=True, eq=False)
class Found:
    """Changes [facts, hidden] of what is put out at the subjects, and the target's nats per token under them."""

    changes: Tensor
    after: Tensor


@dataclass(frozen=True)
class _Batch:
    """Rows of several requests side by side, cut at their subject's last token.

    What stands before it never sees the change: it is read once, and kept as
    keys and values (``past``). What is left begins with the subject's last token.
    """

    past: DynamicCache | None
    ids: Tensor  # [rows, S] from the subject's last token on, padded on the right
    mask: Tensor  # [rows, P + S]
    positions: Tensor  # [rows, S]
    owner: Tensor  # [rows] which request
    where: Tensor  # [n, 2] row and position that predict a token of a target
    targets: Tensor  # [n]
    essence: Tensor  # [requests] the row of each

    def read(self, model: HFModel) -> Tensor:
        """[rows, S, hidden] last hidden states."""
        past = fork(self.past) if self.past is not None else None
        out = model.module.base_model(
            input_ids=self.ids,
            attention_mask=self.mask,
            position_ids=self.positions,
            past_key_values=past,
            use_cache=past is not None,
        )
        hidden: Tensor = out.last_hidden_state
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
    found = []
    for start in _groups(requests):
        found.append(_descend(model, requests[start], site, place, how))
        if step is not None:
            step(start.stop, len(requests))
    return Found(torch.cat([f.changes for f in found]), torch.cat([f.after for f in found]))


def _groups(requests: Sequence[Request]) -> list[slice]:
    """Requests that go through the model together."""
    groups, start, tokens = [], 0, 0
    for i, request in enumerate(requests):
        size = sum(len(row.ids) + len(request.target) for row in request.contexts)
        if i > start and tokens + size > TOKENS:
            groups.append(slice(start, i))
            start, tokens = i, 0
        tokens += size
    return [*groups, slice(start, len(requests))]


def _descend(
    model: HFModel, requests: Sequence[Request], site: Site, place: Literal["mlp", "block"], how: Descent
) -> Found:
    batch = _lay_out(model, requests)
    head = find_head(model.module, exact=False)
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
        losses = _target_loss(hidden, head, batch, len(requests))
        moving &= losses.detach() > how.good_enough
        if number > how.steps or not bool(moving.any()):
            break
        about = hidden[batch.essence, 0]
        thought = torch.log_softmax(head.logits(about, slice(None)), dim=-1)
        reference = thought.detach() if reference is None else reference
        drift = (reference.exp() * (reference - thought)).sum(-1)
        size = (change / lengths[:, None]).square().sum(-1)
        total = (losses + how.kl_weight * drift + how.decay * size).sum()
        (gradient,) = torch.autograd.grad(total, change)
        with torch.no_grad():
            first.lerp_(gradient, 0.1)
            second.lerp_(gradient.square(), 0.001)
            move = (first / (1 - 0.9**number)) / ((second / (1 - 0.999**number)).sqrt() + 1e-8)
            change -= torch.where(moving[:, None], unit[:, None] * move, 0.0)
            bound = how.clamp * lengths / change.norm(dim=-1).clamp(min=1e-12)
            change *= bound.clamp(max=1.0)[:, None]
    return Found(change.detach().cpu(), losses.detach().cpu())


@torch.no_grad()
def _lay_out(model: HFModel, requests: Sequence[Request]) -> _Batch:
    rows: list[tuple[int, Row, tuple[int, ...]]] = []
    essence = []
    for owner, request in enumerate(requests):
        rows += [(owner, row, request.target) for row in request.contexts]
        essence.append(len(rows))
        rows.append((owner, Row(request.essence.ids[: request.essence.subject + 1], request.essence.subject), ()))
    device = model.device
    heads = [row.ids[: row.subject] for _, row, _ in rows]
    tails = [(row.ids + target[:-1])[row.subject :] for _, row, target in rows]
    before, after = max(map(len, heads)), max(map(len, tails))
    head_mask = torch.tensor([[0] * (before - len(h)) + [1] * len(h) for h in heads], device=device)
    tail_mask = torch.tensor([[1] * len(t) + [0] * (after - len(t)) for t in tails], device=device)
    starts = torch.tensor([len(h) for h in heads], device=device)
    past = None
    if before:
        past = DynamicCache()  # of no config: a sliding window would cut what is read again
        model.module.base_model(
            input_ids=torch.tensor([(0,) * (before - len(h)) + h for h in heads], device=device),
            attention_mask=head_mask,
            position_ids=(head_mask.cumsum(1) - 1).clamp(min=0),
            past_key_values=past,
            use_cache=True,
        )
    where = [
        (i, len(row.ids) - 1 - row.subject + j) for i, (_, row, target) in enumerate(rows) for j in range(len(target))
    ]
    return _Batch(
        past=past,
        ids=torch.tensor([t + (0,) * (after - len(t)) for t in tails], device=device),
        mask=torch.cat([head_mask, tail_mask], dim=1),
        positions=starts[:, None] + torch.arange(after, device=device),
        owner=torch.tensor([owner for owner, _, _ in rows], device=device),
        where=torch.tensor(where, device=device),
        targets=torch.tensor([token for _, _, target in rows for token in target], device=device),
        essence=torch.tensor(essence, device=device),
    )


def _adding(change: Tensor, batch: _Batch) -> Any:
    """A hook that adds each request's change at its subject's last token, in all its rows."""

    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        states = states_of(output)
        first = states[:, :1] + change[batch.owner][:, None].to(states.dtype)
        moved = torch.cat([first, states[:, 1:]], dim=1)
        return with_states(output, moved)

    return hook


def _target_loss(hidden: Tensor, head: Any, batch: _Batch, count: int) -> Tensor:
    """[requests] mean nats per token of the targets, over contexts and tokens."""
    values = -token_logprobs(hidden[batch.where[:, 0], batch.where[:, 1]], batch.targets, head)
    owner = batch.owner[batch.where[:, 0]]
    sums = torch.zeros(count, device=values.device).index_add(0, owner, values)
    return sums / torch.bincount(owner, minlength=count)


@torch.no_grad()
def _residual_lengths(model: HFModel, batch: _Batch, site: Site, count: int) -> Tensor:
    """[requests] median length, over its rows, of what the block puts out at the subject."""
    found: list[Tensor] = []

    def hook(_module: Any, _inputs: Any, output: Any) -> None:
        states = states_of(output)
        found.append(states[:, 0].float().norm(dim=-1))

    with hooked((site.block, hook), (site.block, stopping)), suppress(Stop):
        batch.read(model)
    return torch.stack([found[0][batch.owner == i].median() for i in range(count)])


@torch.no_grad()
def keys(model: HFModel, requests: Sequence[Request], site: Site) -> Tensor:
    """fp32 [facts, width] what the memory is asked with at the subject's last token, mean over its contexts."""
    return _read(model, [r.keyed for r in requests], site, inside=True)


@torch.no_grad()
def block_states(model: HFModel, requests: Sequence[Request], site: Site) -> Tensor:
    """fp32 [facts, hidden] what the block puts out there, mean over contexts."""
    return _read(model, [r.keyed for r in requests], site, inside=False)


def _read(model: HFModel, rows: Sequence[Sequence[Row]], site: Site, *, inside: bool) -> Tensor:
    found: list[Tensor] = []

    def key(_module: Any, inputs: Any, _output: Any) -> None:
        found.append(inputs[0].float())

    def state(_module: Any, _inputs: Any, output: Any) -> None:
        found.append(states_of(output).float())

    means = []
    for group in rows:
        width = max(len(row.ids) for row in group)
        width += -width % 16
        ids = torch.tensor([row.ids + (0,) * (width - len(row.ids)) for row in group], device=model.device)
        mask = torch.tensor([[1] * len(r.ids) + [0] * (width - len(r.ids)) for r in group], device=model.device)
        places = ((site.linear, key),) if inside else ((site.block, state),)
        with hooked(*places, (site.block, stopping)), suppress(Stop):
            model.module.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
        states = found.pop()
        means.append(states[torch.arange(len(group)), torch.tensor([r.subject for r in group])].mean(0).cpu())
    return torch.stack(means)
