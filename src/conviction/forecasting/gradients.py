"""How each answer's log-prob would move with the adapter: its gradient, cut into the parts that a simulation needs.

A LoRA layer adds s·B·A to a matrix W. If ∂f/∂W of an answer's log-prob f stays as
it is at one point (A = A₀ + ΔA, B), then f moves by s⟨∂f/∂W, BA − …⟩, which is not
linear in the weights that are trained: B's gradient s ∂f/∂W Aᵀ grows with A, and
A's, s Bᵀ ∂f/∂W, with B. That growth is why a model linear in B alone falls behind by
a factor of two within thirty steps. ∂f/∂W itself is too large to keep; kept are, for
every answer and layer, its products with what is known at the point:

* b₀ = s ∂f/∂W A₀ᵀ and b₁ = s ∂f/∂W ΔAᵀ, of B's shape,
* a₁ = s Bᵀ ∂f/∂W, of A's shape,

and of each only some coordinates, drawn once by a seed. AdamW works on every
coordinate by itself, so a sampled one moves exactly as it would among the others;
only sums over coordinates become estimates. A random projection, the usual way to
make gradients small (TRAK, arXiv 2303.14186), has no such property under AdamW.
Sums along the point itself, ⟨b₀, B⟩ and ⟨b₁, B⟩ layer by layer, are kept exactly,
which also measures what the sampling costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from conviction.core.protocols import Progress
from conviction.models.engine.packing import Ids, pack_whole
from conviction.models.lora import ADAPTER, adapter_layers
from conviction.training.batches import TokenizedExample
from conviction.training.policy import Policy, sum_answers

__all__ = ["Gradients", "Layers", "Row", "take_gradients"]

Row = tuple[Ids, Ids]
"""Prompt and answer."""
GRAIN = 16  # oneDNN compiles a bf16 multiplication for every new number of rows


@dataclass(frozen=True)
class Layers:
    """The adapter at its start (A₀, B = 0) and at the point, and the coordinates that are drawn of each matrix.

    names      of the adapted layers, L in all
    starts     A₀ of each [rank, in]
    a, b       A [rank, in] and B [out, rank] at the point
    pick_a, pick_b   indices into the flattened matrices
    """

    names: tuple[str, ...]
    starts: tuple[Tensor, ...]
    a: tuple[Tensor, ...]
    b: tuple[Tensor, ...]
    pick_a: tuple[Tensor, ...]
    pick_b: tuple[Tensor, ...]
    scale: float

    @classmethod
    def draw(cls, module: Any, starts: dict[str, Tensor], *, per_matrix: int, seed: int = 0) -> Layers:
        """Read a module's adapter; ``per_matrix`` coordinates of every matrix, all of a smaller one."""
        layers = adapter_layers(module)
        generator = torch.Generator().manual_seed(seed)

        def pick(matrix: Tensor) -> Tensor:
            count = matrix.numel()
            if count <= per_matrix:
                return torch.arange(count)
            return torch.randperm(count, generator=generator)[:per_matrix].sort().values

        a = tuple(layer.lora_A[ADAPTER].weight.detach().clone() for layer in layers.values())
        b = tuple(layer.lora_B[ADAPTER].weight.detach().clone() for layer in layers.values())
        return cls(
            names=tuple(layers),
            starts=tuple(starts[name] for name in layers),
            a=a,
            b=b,
            pick_a=tuple(pick(m) for m in a),
            pick_b=tuple(pick(m) for m in b),
            scale=float(next(iter(layers.values())).scaling[ADAPTER]),
        )

    @property
    def share(self) -> float:
        """Coordinates drawn of all."""
        drawn = sum(len(p) for p in (*self.pick_a, *self.pick_b))
        return drawn / sum(m.numel() for m in (*self.a, *self.b))


@dataclass(frozen=True)
class Gradients:
    """Of N answers over L layers; Sa and Sb drawn coordinates of all A and all B, one layer after another.

    b0, b1   [N, Sb]; a1 [N, Sa]; bf16
    along    [N, L] ⟨b₀, B⟩ at the point, exact; cross [N, L] ⟨b₁, B⟩ = ⟨a₁, ΔA⟩, exact; nats
    sums     [N] log-prob of each answer at the point, nats
    """

    layers: Layers
    b0: Tensor
    b1: Tensor
    a1: Tensor
    along: Tensor
    cross: Tensor
    sums: Tensor


def take_gradients(
    policy: Policy, layers: Layers, rows: Sequence[Row], *, token_budget: int, progress: Progress | None = None
) -> Gradients:
    """One forward and backward pass for all of the (prompt, answer) rows, ``token_budget`` tokens at a time.

    policy  at the point, without lean layers: what enters and leaves a layer is read by hooks
    """
    n, depth = len(rows), len(layers.names)
    ends_a, ends_b = _ends(layers.pick_a), _ends(layers.pick_b)
    result = Gradients(
        layers,
        b0=torch.empty(n, ends_b[-1], dtype=torch.bfloat16),
        b1=torch.empty(n, ends_b[-1], dtype=torch.bfloat16),
        a1=torch.empty(n, ends_a[-1], dtype=torch.bfloat16),
        along=torch.zeros(n, depth),
        cross=torch.zeros(n, depth),
        sums=torch.zeros(n),
    )
    modules = dict(policy.module.named_modules())
    budget = token_budget if policy.packed else 1
    packs = pack_whole([(prompt, (answer,)) for prompt, answer in rows], token_budget=budget)
    done = 0
    for pack, members in packs:
        sizes = [len(tree.tokens) for tree in pack.trees]
        spans = [(i, start, start + size) for i, start, size in zip(members, pack.starts, sizes, strict=True)]
        handles = [
            modules[name].register_forward_hook(_reader(result, k, spans, (ends_a[k], ends_b[k])))
            for k, name in enumerate(layers.names)
        ]
        try:
            asked = [TokenizedExample("", rows[i][0], (rows[i][1],)) for i in members]
            sums = sum_answers(policy(pack), pack, asked)[:, 0]
            torch.autograd.backward(sums.sum())
        finally:
            for handle in handles:
                handle.remove()
        result.sums[torch.tensor(members)] = sums.detach().float().cpu()
        done += len(members)
        if progress is not None:
            progress(done, n)
    policy.module.zero_grad(set_to_none=True)
    return result


def _ends(picks: Sequence[Tensor]) -> list[int]:
    """Where each layer's coordinates begin, and at last where they end."""
    ends = [0]
    for pick in picks:
        ends.append(ends[-1] + len(pick))
    return ends


def _reader(
    result: Gradients, k: int, spans: Sequence[tuple[int, int, int]], at: tuple[int, int]
) -> Callable[..., None]:
    """A forward hook of layer k: once the output's gradient is known, every answer's share of it is kept.

    An entry of an outer product Σₜ uₜ vₜᵀ needs one entry of either factor: only the
    drawn ones are multiplied, for all tokens at once, and summed answer by answer.
    """
    layers, s = result.layers, result.layers.scale
    a0, a, b = layers.starts[k], layers.a[k], layers.b[k]
    rank = b.shape[1]
    pick_b, pick_a = layers.pick_b[k].to(b.device), layers.pick_a[k].to(a.device)
    out_b, rank_b = pick_b // rank, pick_b % rank
    rank_a, in_a = pick_a // a.shape[1], pick_a % a.shape[1]
    members = torch.tensor([i for i, _, _ in spans])
    cols_b, cols_a = (slice(start, start + len(pick)) for start, pick in zip(at[::-1], (out_b, in_a), strict=True))

    def hook(_module: Any, args: tuple[Any, ...], output: Tensor) -> None:
        x = args[0].detach()

        def keep(dy: Tensor) -> None:
            # in the model's own dtype, as its own backward pass would; what is summed exactly in fp32
            flat, up = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
            low = torch.cat([a0, a - a0]).to(flat.dtype) @ flat.T  # [2 rank, T]: rows are cheap to select, columns not
            down = b.to(up.dtype).T @ up.T
            owner = torch.zeros(len(spans) + -len(spans) % GRAIN, len(flat), device=flat.device, dtype=flat.dtype)
            for j, (_, start, end) in enumerate(spans):
                owner[j, start:end] = 1
            drawn = up.T.index_select(0, out_b)
            products = torch.cat(
                [
                    drawn * low[:rank].index_select(0, rank_b),
                    drawn * low[rank:].index_select(0, rank_b),
                    down.index_select(0, rank_a) * flat.T.index_select(0, in_a),
                ]
            )
            sums = (products @ owner.T)[:, : len(spans)].float().T.cpu() * s
            both = torch.stack([(down.float() * part.float()).sum(0) for part in (low[:rank], low[rank:])])
            exact = (both @ owner[: len(spans)].float().T).T.cpu() * s
            b0, b1, a1 = torch.split(sums, [len(out_b), len(out_b), len(in_a)], dim=1)
            result.b0[members, cols_b], result.b1[members, cols_b] = b0.bfloat16(), b1.bfloat16()
            result.a1[members, cols_a] = a1.bfloat16()
            result.along[members, k], result.cross[members, k] = exact[:, 0], exact[:, 1]

        output.register_hook(keep)  # type: ignore[no-untyped-call]

    return hook
