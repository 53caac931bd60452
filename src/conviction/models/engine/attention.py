"""Attention over packed token trees: the kernel ``conviction_tree``.

A flat row of tokens reaches attention as queries, keys and values [T, heads,
dim]. Only here is it known which token may see which: trees are gathered into
padded bins, attended, and scattered back. A bin holds either

* *rows*: each answer's path from the root, trunk included, under a causal mask,
  which the fused kernels skip half of (for a preference pair this is never
  more work than the dense tree: (p+c)²/2 + (p+r)²/2 ≤ (p+c+r)²); or
* *trees*: all nodes under their ancestor mask, where many answers or prompts share a
  long trunk, or where a prefix stands before them.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from conviction.models.causal import MIN_TOKENS, causal_attention
from conviction.models.engine.packing import Tree

KERNEL = "conviction_tree"

# At most this share of a bin is padding; members that would add more begin another.
MAX_PADDING = 0.25
# cuDNN makes a plan for every new shape, 40 ms each on an H100 and 100 with the backward pass
# (benchmarks/attention_cuda.py), and packs hardly ever have the shape of another; these kernels need none.
WITHOUT_PLANS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
# Rows for inexact kernels are padded to multiples of it: oneDNN compiles one per shape.
GRAIN = 64


@dataclass(frozen=True)
class Prefix:
    """Keys and values of tokens that every tree of a block attends to.

    layers  layer index → (keys, values), each [1, kv heads, length, head dim]
    """

    length: int = 0
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Bin:
    """Rows or trees of about equal size, padded to [members, nodes] inside attention only."""

    gather: Tensor  # [members * nodes] flat index of each padded node
    depths: Tensor  # [members, nodes] position less the prefix
    visible: Tensor | None  # trees: [members, 1, nodes, nodes] True where a key is an ancestor; rows: None

    def mask(self, prefix: int, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """[members, 1, nodes, prefix + nodes] additive: 0 where a key is seen, -inf elsewhere; None: causal."""
        nodes = self.depths.shape[1]
        visible = self.visible
        if visible is None:
            if window is None or window >= nodes:
                return None
            visible = torch.ones(1, 1, nodes, nodes, dtype=torch.bool, device=self.depths.device).tril()
        key_depths = torch.arange(-prefix, 0, device=self.depths.device).expand(self.depths.shape[0], prefix)
        distance = self.depths[:, :, None] - torch.cat([key_depths, self.depths], dim=1)[:, None, :]
        seen = pad(visible, (prefix, 0), value=True)
        if window is not None:
            seen = seen & (distance < window)[:, None]
        return torch.zeros((), dtype=dtype, device=seen.device).masked_fill(~seen, float("-inf"))


@dataclass(frozen=True)
class TreeAttention:
    """What the attention kernel needs to know about one forward pass."""

    bins: tuple[_Bin, ...]
    scatter: Tensor  # [T] where each flat token stands among the padded ones
    prefix: Prefix
    exact: bool = True  # False: logits may be rounded to bf16 where that is faster
    record: dict[int, tuple[Tensor, Tensor]] | None = None  # fill with keys and values
    masks: dict[tuple[int | None, torch.dtype], list[Tensor | None]] = field(default_factory=dict)  # layers share them

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        layer: int,
        scale: float | None,
        window: int | None,
        dropout: float,
    ) -> Tensor:
        """[1, heads, T, dim] queries to [1, T, heads, dim] outputs."""
        if self.record is not None:
            self.record[layer] = (key, value)
        masks = self.masks.get((window, query.dtype))
        if masks is None:
            masks = [b.mask(self.prefix.length, window, query.dtype) for b in self.bins]
            self.masks[window, query.dtype] = masks
        query, key, value = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))  # [T, heads, dim]
        outputs = []
        for b, mask in zip(self.bins, masks, strict=True):
            padded = [x.index_select(0, b.gather).view(*b.depths.shape, *x.shape[1:]) for x in (query, key, value)]
            if mask is None and dropout == 0 and self._in_blocks(padded[0]):
                q, k, v = padded
                outputs.append(causal_attention(q, k, v, scale or q.shape[-1] ** -0.5).flatten(0, 1))
                continue
            q, k, v = (x.transpose(1, 2) for x in padded)
            if self.prefix.length:
                before_k, before_v = self.prefix.layers[layer]
                k = torch.cat([before_k.expand(len(k), -1, -1, -1), k], dim=2)
                v = torch.cat([before_v.expand(len(v), -1, -1, -1), v], dim=2)
            grouped = q.shape[1] != k.shape[1]
            flash = mask is None and q.dtype != torch.float32  # the one of its kernels that takes grouped heads
            if grouped and q.is_cuda and not flash:  # else it falls back to plain products, three times as slow
                k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
                grouped = False
            out = scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=mask,
                is_causal=mask is None,
                dropout_p=dropout,
                scale=scale,
                enable_gqa=grouped,
            )
            outputs.append(out.transpose(1, 2).flatten(0, 1))
        joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return joined.index_select(0, self.scatter).unsqueeze(0)

    def _in_blocks(self, rows: Tensor) -> bool:
        """Whether causal rows [members, nodes, heads, dim] are faster by matrix multiplications of our own."""
        return not self.exact and not self.prefix.length and rows.shape[1] >= MIN_TOKENS


def _tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    token_tree: TreeAttention | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The registered kernel: trees where a forward pass brings some, plain SDPA elsewhere."""
    with sdpa_kernel(WITHOUT_PLANS) if query.is_cuda else nullcontext():
        if token_tree is None:
            plain: tuple[Tensor, None] = sdpa_attention_forward(
                module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
            )
            return plain
        return _attend(module, token_tree, query, key, value, scaling, dropout, kwargs), None


def _attend(
    module: nn.Module,
    tree: TreeAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None,
    dropout: float,
    more: Mapping[str, Any],
) -> Tensor:
    for unsupported in ("softcap", "s_aux", "position_bias"):
        if more.get(unsupported) is not None:
            raise NotImplementedError(f"packed attention with {unsupported}")
    return tree.attend(
        query,
        key,
        value,
        layer=int(module.layer_idx),  # type: ignore[arg-type]
        scale=scale,
        window=more.get("sliding_window"),
        dropout=dropout,
    )


ALL_ATTENTION_FUNCTIONS.register(KERNEL, _tree_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(KERNEL, sdpa_mask)


@dataclass(frozen=True)
class _Member:
    """One row or tree that a bin will hold: n nodes, by flat index."""

    flat: NDArray[np.int64]  # [n]
    depths: NDArray[np.int64]  # [n]
    visible: NDArray[np.bool_] | None  # [n, n]; None: causal


def layout(
    trees: tuple[Tree, ...],
    starts: list[int],
    prefix: Prefix,
    device: torch.device,
    record: dict[int, tuple[Tensor, Tensor]] | None = None,
    padding: int = 0,
    exact: bool = True,
) -> TreeAttention:
    """Bins of about equal sizes, with the index arrays that lead there and back.

    exact    False: bf16 kernels that round logits may be used (``causal``)
    padding  rows at the end of the flat row that stand for nothing; they get the first node's output
    """
    members = [m for tree, start in zip(trees, starts, strict=True) for m in _members(tree, start, prefix.length)]
    scatter = np.full(sum(len(t.tokens) for t in trees), -1, dtype=np.int64)
    bins: list[_Bin] = []
    offset = 0
    for group in _group(members):
        widest = max(len(m.flat) for m in group)
        if not exact and widest >= MIN_TOKENS:
            widest += -widest % GRAIN
        gather = np.zeros((len(group), widest), dtype=np.int64)
        depths = np.zeros((len(group), widest), dtype=np.int64)
        for row, m in enumerate(group):
            n = len(m.flat)
            gather[row, :n], gather[row, n:] = m.flat, m.flat[0]
            depths[row, :n] = m.depths
            new = scatter[m.flat] < 0  # a trunk stands in several rows, with the same outcome
            scatter[m.flat[new]] = offset + row * widest + np.flatnonzero(new)
        visible = None
        if group[0].visible is not None:
            full = np.zeros((len(group), 1, widest, widest), dtype=np.bool_)
            full[:, 0] |= np.eye(widest, dtype=np.bool_)  # a padded node sees itself: no NaN, forward or back
            for row, m in enumerate(group):
                full[row, 0, : len(m.flat), : len(m.flat)] = m.visible
            visible = torch.from_numpy(full).to(device)
        flat = torch.from_numpy(gather.ravel()).to(device)
        bins.append(_Bin(gather=flat, depths=torch.from_numpy(depths).to(device), visible=visible))
        offset += gather.size
    back = torch.from_numpy(np.pad(scatter, (0, padding))).to(device)
    return TreeAttention(bins=tuple(bins), scatter=back, prefix=prefix, exact=exact, record=record)


def _members(tree: Tree, start: int, prefix: int) -> list[_Member]:
    """A tree as its root-to-leaf rows where that is less work, else whole."""
    depths = np.array(tree.depths, dtype=np.int64)
    paths = [np.array(path, dtype=np.int64) for path in tree.paths()] if not prefix else []
    if paths and sum(len(path) ** 2 for path in paths) / 2 <= len(depths) ** 2:
        return [_Member(start + path, depths[path], None) for path in paths]
    return [_Member(start + np.arange(len(depths)), depths, tree.ancestors())]


def _group(members: list[_Member]) -> list[list[_Member]]:
    """Members of one kind and about one size together, longest first."""
    groups: list[list[_Member]] = []
    filled = 0
    for m in sorted(members, key=lambda m: (m.visible is not None, -len(m.flat), m.flat[0])):
        size = len(m.flat)
        group = groups[-1] if groups else None
        if (
            group is not None
            and (group[0].visible is None) == (m.visible is None)
            and filled + size >= (1 - MAX_PADDING) * len(group[0].flat) * (len(group) + 1)
        ):
            group.append(m)
            filled += size
        else:
            groups.append([m])
            filled = size
    return groups
