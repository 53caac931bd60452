"""Log-probabilities of answers, over packed token trees: the shared hot path.

One flat row of tokens goes through the model's body, unpadded, so that every
matrix multiplication is dense. Only attention knows the trees: the registered
kernel ``conviction_tree`` gathers the trees of a pack into a padded batch,
attends under their ancestor masks (and, within a layer's window, to the
prefix), and scatters back. The LM head runs on the positions that predict
answer tokens only, in slices of the vocabulary, with its log-sum-exp in fp32:
a [tokens, vocabulary] tensor never exists.

``answer_logprobs`` is differentiable: probing calls it under
``torch.inference_mode``, training calls the same function with gradients.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from conviction.models.packing import Ids, Pack, Tree

__all__ = ["KERNEL", "Head", "Prefix", "answer_logprobs", "compute_prefix", "find_head", "token_logprobs"]

KERNEL = "conviction_tree"

# fp32 logits of one slice of the vocabulary stay near this size, so that the
# log-sum-exp reads them back from cache (measured: 2-4x faster than one slice).
SLICE_BYTES = 16 * 2**20

# Trees whose sizes differ by more than this share are attended in separate bins.
MAX_PADDING = 0.25


@dataclass(frozen=True)
class Prefix:
    """Keys and values of tokens that every tree of a block attends to.

    layers  layer index → (keys, values), each [1, kv heads, length, head dim]
    """

    length: int = 0
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Bin:
    """Trees of about equal size, padded to [trees, nodes] inside attention only."""

    gather: Tensor  # [trees * nodes] flat index of each padded node
    visible: Tensor  # [trees, 1, nodes, nodes] True where a key is an ancestor
    depths: Tensor  # [trees, nodes] position less the prefix

    def mask(self, prefix: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """[trees, 1, nodes, prefix + nodes] additive: 0 where a key is seen, -inf elsewhere."""
        key_depths = torch.arange(-prefix, 0, device=self.depths.device).expand(self.depths.shape[0], prefix)
        distance = self.depths[:, :, None] - torch.cat([key_depths, self.depths], dim=1)[:, None, :]
        seen = torch.nn.functional.pad(self.visible, (prefix, 0), value=True)
        if window is not None:
            seen = seen & (distance < window)[:, None]
        return torch.zeros((), dtype=dtype, device=seen.device).masked_fill(~seen, float("-inf"))


@dataclass(frozen=True)
class TreeAttention:
    """What the attention kernel needs to know about one forward pass."""

    bins: tuple[_Bin, ...]
    scatter: Tensor  # [T] where each flat token stands among the padded ones
    prefix: Prefix
    record: dict[int, tuple[Tensor, Tensor]] | None = None  # fill with keys and values
    masks: dict[tuple[int | None, torch.dtype], list[Tensor]] = field(default_factory=dict)  # layers share them

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
            q, k, v = (
                x.index_select(0, b.gather).view(*b.depths.shape, *x.shape[1:]).transpose(1, 2)
                for x in (query, key, value)
            )
            if self.prefix.length:
                before_k, before_v = self.prefix.layers[layer]
                k = torch.cat([before_k.expand(len(k), -1, -1, -1), k], dim=2)
                v = torch.cat([before_v.expand(len(v), -1, -1, -1), v], dim=2)
            out = scaled_dot_product_attention(
                q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
            )
            outputs.append(out.transpose(1, 2).flatten(0, 1))
        padded = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return padded.index_select(0, self.scatter).unsqueeze(0)


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
    if token_tree is None:
        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return plain
    for unsupported in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(unsupported) is not None:
            raise NotImplementedError(f"packed attention with {unsupported}")
    out = token_tree.attend(
        query,
        key,
        value,
        layer=int(module.layer_idx),  # type: ignore[arg-type]
        scale=scaling,
        window=kwargs.get("sliding_window"),
        dropout=dropout,
    )
    return out, None


ALL_ATTENTION_FUNCTIONS.register(KERNEL, _tree_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(KERNEL, sdpa_mask)


def _layout(
    trees: tuple[Tree, ...],
    starts: list[int],
    prefix: Prefix,
    device: torch.device,
    record: dict[int, tuple[Tensor, Tensor]] | None = None,
) -> TreeAttention:
    """Bins of about equal sizes, with the index arrays that lead there and back."""
    bins: list[_Bin] = []
    scatter = np.empty(sum(len(t.tokens) for t in trees), dtype=np.int64)
    offset = first = 0
    while first < len(trees):
        widest = len(trees[first].tokens)  # packs are sorted, longest first
        last = first + 1
        filled = widest
        while last < len(trees):
            size = len(trees[last].tokens)
            if (filled + size) < (1 - MAX_PADDING) * widest * (last + 1 - first):
                break
            filled += size
            last += 1
        members = range(first, last)
        gather = np.zeros((len(members), widest), dtype=np.int64)
        visible = np.zeros((len(members), 1, widest, widest), dtype=np.bool_)
        depths = np.zeros((len(members), widest), dtype=np.int64)
        visible[:, 0] |= np.eye(widest, dtype=np.bool_)  # a padded row sees itself: no NaN, forward or back
        for row, i in enumerate(members):
            n = len(trees[i].tokens)
            gather[row, :n] = np.arange(starts[i], starts[i] + n)
            gather[row, n:] = starts[i]
            visible[row, 0, :n, :n] = trees[i].ancestors()
            depths[row, :n] = trees[i].depths
            scatter[starts[i] : starts[i] + n] = offset + row * widest + np.arange(n)
        bins.append(
            _Bin(
                gather=torch.from_numpy(gather.ravel()).to(device),
                visible=torch.from_numpy(visible).to(device),
                depths=torch.from_numpy(depths).to(device),
            )
        )
        offset += gather.size
        first = last
    return TreeAttention(bins=tuple(bins), scatter=torch.from_numpy(scatter).to(device), prefix=prefix, record=record)


def _run_body(body: nn.Module, tokens: np.ndarray, positions: np.ndarray, attention: TreeAttention) -> Tensor:
    """[T, hidden] last hidden states of one flat row."""
    device = attention.scatter.device
    # A 4-D mask is handed to attention as it is, which keeps transformers from
    # reading the restarting positions as packed sequences (transformers#46634).
    no_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
    out = body(
        input_ids=torch.from_numpy(tokens).to(device)[None],
        position_ids=torch.from_numpy(positions).to(device)[None],
        attention_mask=no_mask,
        use_cache=False,
        token_tree=attention,
    )
    hidden: Tensor = out.last_hidden_state[0]
    return hidden


def compute_prefix(body: nn.Module, ids: Ids, device: torch.device) -> Prefix:
    """Run the prefix once and keep every layer's keys and values."""
    if not ids:
        return Prefix()
    chain = Tree(
        prompt=ids, tokens=list(ids), parents=list(range(-1, len(ids) - 1)), depths=list(range(len(ids))), answers={}
    )
    recorded: dict[int, tuple[Tensor, Tensor]] = {}
    attention = _layout((chain,), [0], Prefix(), device, record=recorded)
    _run_body(body, np.array(ids), np.arange(len(ids)), attention)
    return Prefix(length=len(ids), layers=recorded)


@dataclass(frozen=True)
class Head:
    """The LM head as a pure function of hidden states.

    weight   [vocabulary, hidden]; bias [vocabulary] or None
    scale    logits are multiplied by it (Cohere, Granite)
    softcap  then squashed to ±softcap by tanh (Gemma 2)
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Tensor, rows: slice) -> Tensor:
        """fp32 logits [M, rows] of a slice of the vocabulary."""
        logits = _matmul_fp32(hidden, self.weight[rows])
        return self._finish(logits, None if self.bias is None else self.bias[rows])

    def logit_of(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """fp32 logits [M] of one target each, without the rest of the vocabulary."""
        logits = (hidden.float() * self.weight[targets].float()).sum(-1)
        return self._finish(logits, None if self.bias is None else self.bias[targets])

    def _finish(self, logits: Tensor, bias: Tensor | None) -> Tensor:
        if bias is not None:
            logits = logits + bias.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits


def find_head(model: Any) -> Head:
    """The head of a transformers causal LM, with the scalings its ``forward`` would apply.

    A scaling that is not known here shows up in the self-check at load, which
    then falls back to the model's own ``forward``.
    """
    linear = model.get_output_embeddings()
    config = model.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)
    return Head(linear.weight, getattr(linear, "bias", None), scale, float(softcap) if softcap else None)


def _matmul_fp32(hidden: Tensor, weight: Tensor) -> Tensor:
    """Hidden @ weight.T with an fp32 result: bf16 logits would cost 0.004 nats a token."""
    if hidden.dtype == weight.dtype == torch.float32:
        return hidden @ weight.T
    if hidden.is_cuda and hidden.dtype == weight.dtype and not torch.is_grad_enabled():
        return torch.mm(hidden, weight.T, out_dtype=torch.float32)
    return hidden.float() @ weight.float().T


def token_logprobs(hidden: Tensor, targets: Tensor, head: Head) -> Tensor:
    """fp32 log-probs [M] of ``targets`` [M] under hidden states [M, hidden].

    The vocabulary is walked in slices; with gradients, each slice is
    recomputed in the backward pass instead of being kept.
    """
    vocabulary = head.weight.shape[0]
    width = max(1024, SLICE_BYTES // (4 * max(1, hidden.shape[0])))
    sums = []
    for start in range(0, vocabulary, width):
        rows = slice(start, min(start + width, vocabulary))
        if torch.is_grad_enabled():
            sums.append(checkpoint(_slice_logsumexp, hidden, head, rows, use_reentrant=False))
        else:
            sums.append(_slice_logsumexp(hidden, head, rows))
    return head.logit_of(hidden, targets) - torch.logsumexp(torch.stack(sums), dim=0)


def _slice_logsumexp(hidden: Tensor, head: Head, rows: slice) -> Tensor:
    return torch.logsumexp(head.logits(hidden, rows), dim=-1)


def answer_logprobs(
    body: nn.Module, head: Head, pack: Pack, prefix: Prefix
) -> tuple[Tensor, dict[tuple[Ids, Ids], Tensor]]:
    """Log-probs of all answer tokens of a pack.

    Returns (values, where): values [M] in nats, one per distinct pair of
    predicting node and predicted token; where[prompt, answer] is the index
    [answer tokens] of its log-probs in ``values``. Answers that begin alike
    share their pairs, so nothing is computed twice.
    """
    device = head.weight.device
    starts = pack.starts
    attention = _layout(pack.trees, starts, prefix, device)
    hidden = _run_body(body, pack.tokens, pack.depths + prefix.length, attention)
    index: dict[tuple[int, int], int] = {}
    where: dict[tuple[Ids, Ids], Tensor] = {}
    for start, tree in zip(starts, pack.trees, strict=True):
        for answer, pairs in tree.answers.items():
            flat = [index.setdefault((start + node, target), len(index)) for node, target in pairs]
            where[tree.prompt, answer] = torch.tensor(flat)
    nodes = torch.tensor([n for n, _ in index], device=device)
    targets = torch.tensor([t for _, t in index], device=device)
    return token_logprobs(hidden.index_select(0, nodes), targets, head), where
