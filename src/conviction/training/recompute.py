"""Memory-efficient layers: the same functions, keeping less for the backward pass.

A training step's memory is what the forward pass keeps. Two parts of a
Llama-type block keep more than they need: RMSNorm keeps fp32 copies of its
input, and the gated MLP keeps every product of its gate. Here they keep their
inputs, and recompute elementwise what the backward pass wants (no matrix
multiplication is repeated); layers with an adapter that read a norm's output
keep the norm's input instead. A layer is replaced only if the replacement
computes the same on a test input. Queries, keys and values come from one
function, so that their gradients are summed inside multiplications.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from conviction.models.lora import FusedLinear, can_fuse, fused


class _RmsNorm(torch.autograd.Function):
    """w · x / sqrt(mean(x²) + ε), computed in fp32 (Zhang & Sennrich 1910.07467); keeps x and the scale of each row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
        scale = norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, scale, weight)
        ctx.mark_non_differentiable(scale)
        return _scaled(x, scale, weight), scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, scale, weight = ctx.saved_tensors
        unit = x * scale  # fp32; not in place: x belongs to others too
        d_weight = None
        if ctx.needs_input_grad[1]:
            d_weight = (grads[0].float() * unit).flatten(0, -2).sum(0).to(weight.dtype)
        d_unit = (grads[0] * weight).float()
        mean = (d_unit * unit).mean(-1, keepdim=True)
        return d_unit.sub_(unit.mul_(mean)).mul_(scale).to(x.dtype), d_weight, None


class _Gate(torch.autograd.Function):
    """silu(gate) · up; keeps gate and up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        return _gate_backward(grads[0], *ctx.saved_tensors)


class _GatedDown(torch.autograd.Function):
    """The gate and the LoRA layer after it: the layer's input is recomputed from gate and up, too."""

    @staticmethod
    def forward(
        ctx: Any, gate: Tensor, up: Tensor, weight: Tensor, lora_a: Tensor, lora_b: Tensor, scale: float
    ) -> Tensor:
        inner = silu(gate).mul_(up)
        a, b = lora_a.to(gate.dtype), lora_b.to(gate.dtype)
        flat = inner.view(-1, inner.shape[-1])
        low = flat @ a.T
        ctx.save_for_backward(gate, up, low, weight, a, b)
        ctx.scale, ctx.dtype = scale, lora_a.dtype
        return (flat @ weight.T).addmm_(low, b.T, alpha=scale).view(*gate.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, low, weight, a, b = ctx.saved_tensors
        dy = grads[0].reshape(-1, grads[0].shape[-1])
        down = dy @ b
        inner = silu(gate).mul_(up).view(-1, gate.shape[-1])
        da = (down.T @ inner).to(ctx.dtype).mul_(ctx.scale)
        db = (dy.T @ low).to(ctx.dtype).mul_(ctx.scale)
        del inner
        d_inner = (dy @ weight).addmm_(down, a, alpha=ctx.scale).view_as(gate)
        return *_gate_backward(d_inner, gate, up), None, da, db, None


def _gate_backward(d_inner: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    d_gate = torch.ops.aten.silu_backward(d_inner * up, gate)
    return d_gate, silu(gate).mul_(d_inner)


def _scaled(x: Tensor, scale: Tensor, weight: Tensor) -> Tensor:
    return weight * (x * scale).to(x.dtype)  # x · scale is fp32


def _norm_forward(self: Any, hidden_states: Tensor) -> Tensor:
    normed: Tensor
    normed, scale = _RmsNorm.apply(hidden_states, self.weight, self.variance_epsilon)  # type: ignore[no-untyped-call]
    if torch.is_grad_enabled():
        normed.recipe = (_scaled, (hidden_states.detach(), scale, self.weight.detach()))  # type: ignore[attr-defined]
    return normed


def _attention_forward(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
    """The class's own, with queries, keys and values computed together."""
    # some layers have none of their own, and use others' keys and values
    layers: list[Any] = [getattr(self, name, None) for name in ("q_proj", "k_proj", "v_proj")]
    if not can_fuse(hidden_states, layers):
        return type(self).forward(self, hidden_states, *args, **kwargs)
    try:
        for layer, output in zip(layers, fused(hidden_states, *layers), strict=True):
            layer.ready = (hidden_states, output)
        return type(self).forward(self, hidden_states, *args, **kwargs)
    finally:
        for layer in layers:
            layer.ready = None


def _mlp_forward(self: Any, x: Tensor) -> Tensor:
    first, down = (self.gate_proj, self.up_proj), self.down_proj
    gate, up = fused(x, *first) if can_fuse(x, first) else (layer(x) for layer in first)
    if isinstance(down, FusedLinear) and down.is_plain(gate) and down.base_layer.bias is None:
        weight, _, a, b = down.operands()
        out: Tensor = _GatedDown.apply(gate, up, weight, a, b, down.scale)  # type: ignore[no-untyped-call]
        return out
    plain: Tensor = down(_Gate.apply(gate, up))  # type: ignore[no-untyped-call]
    return plain


def use_memory_efficient_layers(module: Any) -> list[str]:
    """Replace the forward pass of RMSNorms, gated MLPs and attention in a model's body; names the classes changed."""
    adopted: dict[type, Callable[..., Tensor] | None] = {}
    for child in module.base_model.modules():
        kind = type(child)
        if kind not in adopted:
            forward = _candidate(child)
            adopted[kind] = forward if forward in {None, _attention_forward} or _same(child, forward) else None
        forward = adopted[kind]
        if forward is not None:
            child.forward = MethodType(forward, child)
    return sorted(kind.__name__ for kind, forward in adopted.items() if forward is not None)


def _candidate(child: Any) -> Callable[..., Tensor] | None:
    if type(child).__name__.endswith("RMSNorm") and hasattr(child, "variance_epsilon"):
        return _norm_forward
    children = dict(child.named_children())
    if {"q_proj", "k_proj", "v_proj"} <= set(children):
        return _attention_forward
    names = {"gate_proj", "up_proj", "down_proj", "act_fn"}
    if set(children) == names:
        # on its own and in fp32: near 0 all activations look alike, to bf16 at least
        x = torch.linspace(-6, 6, 49)
        return _mlp_forward if torch.allclose(child.act_fn(x), silu(x)) else None
    return None


@torch.no_grad()
def _same(child: Any, forward: Callable[..., Tensor]) -> bool:
    """Whether both forward passes agree on a fixed input, to the rounding of the dtype."""
    weight = child.weight if forward is _norm_forward else child.gate_proj.weight
    x = torch.linspace(-2, 2, 3 * weight.shape[-1], device=weight.device).view(1, 3, -1).sin().to(weight.dtype)
    expected, result = child(x), forward(child, x)
    tolerance = 16 * torch.finfo(x.dtype).eps * float(expected.abs().max())
    return bool((expected - result).abs().max() <= tolerance)
