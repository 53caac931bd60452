"""Log-probabilities of answers, over packed token trees: the shared hot path.

One flat row of tokens goes through the model's body, unpadded, so that every
matrix multiplication is dense; only attention knows the trees (``attention``).
The LM head runs on the positions that predict answer tokens only, in slices of
the vocabulary, with its log-sum-exp in fp32: a [tokens, vocabulary] tensor
never exists.

``answer_logprobs`` is differentiable: probing calls it under
``torch.inference_mode``, training calls the same function with gradients.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from conviction.errors import InputError, ModelError
from conviction.models.engine.attention import Prefix, TreeAttention, layout
from conviction.models.engine.packing import Ids, Pack, Tree

# fp32 logits of one slice of the vocabulary stay near this size, so that what
# follows reads them back from cache (measured: 2-4x faster than one slice).
SLICE_BYTES = 16 * 2**20


def run_body(
    body: nn.Module,
    tokens: np.ndarray,
    positions: np.ndarray,
    attention: TreeAttention,
    entering: Tensor | None = None,
) -> Tensor:
    """[T, hidden] last hidden states of one flat row. ``entering`` [T, hidden] takes the place of embeddings."""
    device = attention.scatter.device
    # A 4-D mask is handed to attention as it is, which keeps transformers from
    # reading the restarting positions as packed sequences (transformers#46634).
    no_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
    source = (
        {"input_ids": torch.from_numpy(tokens).to(device)[None]}
        if entering is None
        else {"inputs_embeds": entering[None]}
    )
    out = body(
        **source,
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
    chain = Tree(tokens=list(ids), parents=list(range(-1, len(ids) - 1)), depths=list(range(len(ids))), answers={})
    recorded: dict[int, tuple[Tensor, Tensor]] = {}
    attention = layout((chain,), [0], Prefix(), device, record=recorded)
    run_body(body, np.array(ids), np.arange(len(ids)), attention)
    return Prefix(length=len(ids), layers=recorded)


@torch.inference_mode()
def windows_of(body: nn.Module, device: torch.device) -> set[int | None]:
    """The attention windows, in tokens, that the layers give to the kernel; None: a layer that gives none."""
    pair = Tree(tokens=[0, 0], parents=[-1, 0], depths=[0, 1], answers={})
    attention = layout((pair,), [0], Prefix(), device)
    run_body(body, np.array(pair.tokens), np.array(pair.depths), attention)
    return {window for window, _ in attention.masks}


@dataclass(frozen=True)
class Head:
    """The LM head as a pure function of hidden states.

    weight   [vocabulary, hidden]; bias [vocabulary] or None
    scale    logits are multiplied by it (Cohere, Granite)
    softcap  then squashed to ±softcap by tanh (Gemma 2)
    exact    multiply with an fp32 result. Otherwise logits are rounded to the
             weights' dtype first, as every bf16 trainer does: 0.004 nats a
             token, and twice as fast on a CPU
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    exact: bool = True

    def logits(self, hidden: Tensor, rows: slice) -> Tensor:
        """fp32 logits [M, rows] of a slice of the vocabulary."""
        weight = self.weight[rows]
        logits = _matmul_fp32(hidden, weight) if self.exact else (hidden @ weight.to(hidden.dtype).T).float()
        return self._finish(logits, None if self.bias is None else self.bias[rows])

    def logit_of(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """fp32 logits [M] of one target each, without the rest of the vocabulary."""
        logits = (hidden.float() * self.weight[targets].float()).sum(-1)
        if not self.exact:
            logits = logits.to(hidden.dtype).float()  # rounded as in the slices, or p could exceed 1
        return self._finish(logits, None if self.bias is None else self.bias[targets])

    def slope(self, logits: Tensor) -> Tensor | float:
        """D logit / d (hidden · weight), elementwise."""
        return self.scale if self.softcap is None else self.scale * (1 - (logits / self.softcap) ** 2)

    def _finish(self, logits: Tensor, bias: Tensor | None) -> Tensor:
        if bias is not None:
            logits = logits + bias.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits


def find_head(model: Any, *, exact: bool = True) -> Head:
    """The head of a transformers causal LM, with the scalings its ``forward`` would apply.

    A scaling that is not known here shows up in the self-check at load, which
    then falls back to the model's own ``forward``. Raises InputError for a head that is more than a matrix
    and a bias, as one that an adapter changes.
    """
    linear = model.get_output_embeddings()
    if type(linear) is not nn.Linear:
        raise InputError(
            f"the head of {type(model).__name__} is a {type(linear).__name__}, which is read by its own forward alone",
            hint="merge the adapter into the model first (PEFT: merge_and_unload)",
        )
    config = model.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)
    return Head(linear.weight, getattr(linear, "bias", None), scale, float(softcap) if softcap else None, exact)


def checked_head(model: Any, *, exact: bool = True) -> Head:
    """The head, where it gives the logits of the model's own ``forward``, which is tried once a model.

    Raises ModelError otherwise: logits are then scaled in a way that is not known here (HyperCLOVA-X).
    """
    head = find_head(model, exact=exact)
    if model not in _AGREES:
        with torch.inference_mode():
            ids = torch.tensor([[0, 1]], device=head.weight.device)
            own = model(input_ids=ids, use_cache=False).logits[0].float()
            hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
            ours = head.logits(hidden, slice(None))
        apart, size = float((own - ours).abs().max()), float(own.abs().max())
        _AGREES[model] = apart <= 0.02 * size  # bf16 logits are known to a two hundredth
    if not _AGREES[model]:
        raise ModelError(
            f"{type(model).__name__} makes its logits from hidden states in a way that is not known here",
            hint="probing and training on answers work, through the model's own forward; tracing, neurons, editing and "
            "distilling do not",
        )
    return head


_AGREES: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def last_positions(module: Any, count: int, width: int) -> int | Tensor:
    """``logits_to_keep`` for the last ``count`` of ``width`` positions; by index where a slice would be slow.

    A slice is no contiguous tensor, and for one a CPU copies the head once for
    every row. Code from elsewhere than transformers may know numbers only.
    """
    parameter = next(module.parameters())
    ours = type(module).__module__.startswith("transformers.")
    if (
        parameter.device.type != "cpu"
        or not ours
        or "logits_to_keep" not in inspect.signature(module.forward).parameters
    ):
        return count
    return torch.arange(-min(count, width), 0)


def _matmul_fp32(hidden: Tensor, weight: Tensor) -> Tensor:
    """Hidden @ weight.T with an fp32 result: bf16 logits would cost 0.004 nats a token."""
    if hidden.dtype == weight.dtype == torch.float32:
        return hidden @ weight.T
    if hidden.is_cuda and hidden.dtype == weight.dtype and not torch.is_grad_enabled():
        return torch.mm(hidden, weight.T, out_dtype=torch.float32)
    return hidden.float() @ weight.float().T


def token_logprobs(hidden: Tensor, targets: Tensor, head: Head) -> Tensor:
    """fp32 log-probs [M] of ``targets`` [M] under hidden states [M, hidden].

    The vocabulary is walked in slices. With gradients, a frozen head gives its
    derivative along with the value; a trained one recomputes each slice in the
    backward pass instead of keeping it.
    """
    if torch.is_autocast_enabled(hidden.device.type):  # value and log-sum-exp must be rounded alike
        with torch.autocast(hidden.device.type, enabled=False):
            return token_logprobs(hidden, targets, head)
    trained = head.weight.requires_grad or (head.bias is not None and head.bias.requires_grad)
    if torch.is_grad_enabled() and hidden.requires_grad and not trained:
        logprobs: Tensor = _FrozenHead.apply(hidden, targets, head)  # type: ignore[no-untyped-call]
        return logprobs
    sums = []
    for rows in _slices(hidden, head):
        if torch.is_grad_enabled() and trained:
            sums.append(checkpoint(_slice_logsumexp, hidden, head, rows, use_reentrant=False))
        else:
            sums.append(_slice_logsumexp(hidden, head, rows))
    return head.logit_of(hidden, targets) - torch.logsumexp(torch.stack(sums), dim=0)


def _slices(hidden: Tensor, head: Head) -> list[slice]:
    vocabulary = head.weight.shape[0]
    # Inexact: a training step, whose peak this adds to, and where few different widths should occur (see _padding).
    room, grain = (SLICE_BYTES, 1) if head.exact else (SLICE_BYTES // 4, 1024)
    width = max(1024, room // (4 * max(1, hidden.shape[0])) // grain * grain)
    return [slice(start, min(start + width, vocabulary)) for start in range(0, vocabulary, width)]


def _slice_logsumexp(hidden: Tensor, head: Head, rows: slice) -> Tensor:
    return torch.logsumexp(head.logits(hidden, rows), dim=-1)


def logsumexp_with_slope(hidden: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of the logits [M], nats, and its derivative by hidden states [M, hidden], fp32, in one walk.

    The derivative is E_p[W] (times what ``Head.slope`` gives), which is attention with the head's
    rows as keys and values: slices are merged as in online softmax (Milakov &
    Gimelshein 1805.02867; Dao et al. 2205.14135).
    """
    total = hidden.new_full((hidden.shape[0],), float("-inf"), dtype=torch.float32)
    expected = torch.zeros_like(hidden, dtype=torch.float32)
    for rows in _slices(hidden, head):
        logits = head.logits(hidden, rows)
        shares = torch.softmax(logits, dim=-1)
        # log-sum-exp of the slice: the largest share is at least 1/rows, so its log is safe
        here = logits.amax(-1) - shares.amax(-1).log()
        if head.softcap is not None:
            shares *= head.slope(logits)
        joint = torch.logaddexp(total, here)
        mean = shares.to(head.weight.dtype) @ head.weight[rows]
        expected.mul_((total - joint).exp()[:, None]).addcmul_(mean.float(), (here - joint).exp()[:, None])
        total = joint
    return total, expected if head.softcap is not None else expected * head.scale


class _FrozenHead(torch.autograd.Function):
    """log p(target) with d log p / d hidden computed in the same walk over the vocabulary.

    The derivative is W[target] - E_p[W]. Two multiplications by the head in all, where recomputing
    the logits in the backward pass takes three, and only [M, hidden] is kept.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, head: Head) -> Tensor:
        total, away = logsumexp_with_slope(hidden, head)
        logits = head.logit_of(hidden, targets)
        slope = head.slope(logits)
        towards = head.weight[targets].float()
        towards = towards * (slope[:, None] if isinstance(slope, Tensor) else slope)
        ctx.save_for_backward((towards - away).to(hidden.dtype))
        return logits - total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (direction,) = ctx.saved_tensors
        return direction * grads[0][:, None].to(direction.dtype), None, None


def predictions(pack: Pack) -> tuple[list[int], list[int], dict[tuple[Ids, Ids], Tensor]]:
    """What a pack predicts: flat nodes [M], target ids [M], and where each answer's tokens stand among them.

    where[prompt, answer] is an index [answer tokens]. Answers that begin alike
    share their pairs of node and target, so nothing is computed twice.
    """
    index: dict[tuple[int, int], int] = {}
    where: dict[tuple[Ids, Ids], Tensor] = {}
    for start, tree in zip(pack.starts, pack.trees, strict=True):
        for row, pairs in tree.answers.items():
            flat = [index.setdefault((start + node, target), len(index)) for node, target in pairs]
            where[row] = torch.tensor(flat)
    return [node for node, _ in index], [target for _, target in index], where


def answer_logprobs(body: nn.Module, head: Head, pack: Pack, prefix: Prefix, entering: Tensor | None = None) -> Tensor:
    """Log-probs [M] of all answer tokens of a pack, nats, in the order of ``predictions(pack)``.

    entering  [T, hidden] takes the place of the embeddings
    """
    hidden, targets = answer_states(body, head, pack, prefix, entering)
    return token_logprobs(hidden, targets, head)[: len(predictions(pack)[0])]


def answer_states(
    body: nn.Module, head: Head, pack: Pack, prefix: Prefix, entering: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Last hidden states [M, hidden] that predict a pack's answer tokens, and those tokens [M].

    In the order of ``predictions(pack)``; padding may follow.
    """
    device, dtype = head.weight.device, head.weight.dtype
    tokens, positions = pack.tokens, pack.depths + prefix.length
    padding = _padding(len(tokens), device, dtype)
    exact = head.exact or device.type != "cpu" or dtype != torch.bfloat16
    attention = layout(pack.trees, pack.starts, prefix, device, padding=padding, exact=exact)
    if entering is not None:
        entering = pad(entering, (0, 0, 0, padding))
    hidden = run_body(body, np.pad(tokens, (0, padding)), np.pad(positions, (0, padding)), attention, entering)
    nodes, targets, _ = predictions(pack)
    more = [0] * _padding(len(nodes), device, dtype)
    read = hidden.index_select(0, torch.tensor(nodes + more, device=device))
    return read, torch.tensor(targets + more, device=device)


def _padding(rows: int, device: torch.device, dtype: torch.dtype) -> int:
    """Rows to add so that few different sizes occur.

    In half precision on a CPU, oneDNN compiles a kernel for every new shape and
    keeps a thousand of them: 20 ms and 13 MB for each new length of a row, here.
    """
    if device.type != "cpu" or dtype == torch.float32:
        return 0
    return -rows % (64 if rows > 256 else 16)
