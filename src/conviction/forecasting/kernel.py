"""Training without the model: AdamW on the sampled coordinates of an adapter, with the real order of the batches.

The movement of an answer's log-prob at weights (A₀ + δA, B) is taken from what
``gradients`` kept at the pilot's end, where δA = ΔA and B = B*. In every layer B is
written as β·B* plus a rest, δA as α·ΔA plus a rest; then, summed over layers,

    f = β⟨b₀, B*⟩ + ⟨b₀, rest of B⟩ + αβ⟨b₁, B*⟩ + α⟨b₁, rest of B⟩ + β⟨a₁, rest of δA⟩ + e·min(τ, 1)

which is exact in A and B for a ∂f/∂W that does not change, but for the product of
the two rests. e is what the pilot really moved the answer by, less what the rest of
the formula says of it; τ is how far the weights have come along the pilot's way. In
bf16 e is large and negative: the first updates are lost in rounding (an adapter's
output below half a unit in the last place of W's does not arrive), later ones are
not, so e is a debt that is paid once. That it stays constant is unproven; it did on
the runs in benchmarks/results/forecast_battery.json.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from conviction.forecasting.gradients import Gradients
from conviction.training.objectives import Objective
from conviction.training.settings import Training
from conviction.training.step import rate_at

__all__ = ["Kernel", "Plan", "Step", "Trajectory", "simulate"]


@dataclass(frozen=True)
class Kernel:
    """What is known of N answers: log-probs at the start, movement by the pilot, gradients at its end.

    base   [N] nats, summed over tokens; counts [N] tokens
    """

    gradients: Gradients
    base: Tensor
    counts: Tensor

    @cached_property
    def offset(self) -> Tensor:
        """[N] e: the pilot's movement that the gradients at its end do not explain, nats."""
        g = self.gradients
        return g.sums - self.base - (g.along + g.cross).sum(1)

    @cached_property
    def point(self) -> _Point:
        """The pilot's end in the sampled coordinates."""
        return _Point.of(self.gradients)

    @cached_property
    def sampling_error(self) -> float:
        """Relative RMS error that the sampling of coordinates makes in ⟨b₀, B*⟩, which is also known exactly."""
        g, point = self.gradients, self.point
        exact = g.along.sum(1)
        sampled = g.b0.float() @ (point.weight_b * point.b)
        size = float(exact.square().mean().sqrt())
        return float((sampled - exact).square().mean().sqrt()) / size if size > 0 else 0.0


@dataclass(frozen=True)
class _Point:
    """B* [Sb] and ΔA [Sa]; layer_*: each coordinate's layer; weight_*: how many entries it stands for."""

    b: Tensor
    a: Tensor
    layer_b: Tensor
    layer_a: Tensor
    weight_b: Tensor
    weight_a: Tensor
    square_b: Tensor
    square_a: Tensor
    length: float

    @classmethod
    def of(cls, gradients: Gradients) -> _Point:
        layers = gradients.layers
        moved = [a - start for a, start in zip(layers.a, layers.starts, strict=True)]
        b, layer_b, weight_b = _flat(layers.b, layers.pick_b)
        a, layer_a, weight_a = _flat(moved, layers.pick_a)
        depth = len(layers.names)
        length = float((weight_b * b * b).sum() + (weight_a * a * a).sum())
        return cls(
            b, a, layer_b, layer_a, weight_b, weight_a,
            _by_layer(b * b, layer_b, depth), _by_layer(a * a, layer_a, depth), length,
        )  # fmt: skip


def _flat(matrices: Sequence[Tensor], picks: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Drawn coordinates of all matrices in one row, the layer of each, and the entries that each stands for."""
    counts = torch.tensor([len(pick) for pick in picks])
    values = torch.cat([m.flatten()[pick].float().cpu() for m, pick in zip(matrices, picks, strict=True)])
    share = torch.tensor([m.numel() / len(pick) for m, pick in zip(matrices, picks, strict=True)])
    layer = torch.repeat_interleave(torch.arange(len(picks)), counts)
    return values, layer, share[layer]


def _by_layer(values: Tensor, layer: Tensor, depth: int) -> Tensor:
    return torch.zeros(depth).index_add_(0, layer, values)


@dataclass(frozen=True)
class Plan:
    """A run to be simulated: rows of each example's answers [n, a], the examples of each step, and how it trains."""

    examples: Tensor
    order: Sequence[Sequence[int]]
    objective: Objective
    training: Training


@dataclass(frozen=True)
class Step:
    """What a step of a simulated run shows. watched: movement of the watched rows before the step, nats."""

    step: int
    loss: float
    grad_norm: float
    margin: float | None
    chosen_drop: float | None
    watched: Tensor


@dataclass(frozen=True)
class Trajectory:
    """A simulated run. moved: after a step, how far each of the N answers has moved, nats; extrapolation: τ, step by step."""

    steps: tuple[Step, ...]
    moved: dict[int, Tensor]
    extrapolation: tuple[float, ...]


class _Walk:
    """Weights on their way: B and δA in sampled coordinates, with AdamW's moments (Loshchilov & Hutter 1711.05101)."""

    def __init__(self, point: _Point) -> None:
        self.point = point
        self.b, self.a = torch.zeros_like(point.b), torch.zeros_like(point.a)
        self.moments = [torch.zeros_like(t) for t in (self.b, self.b, self.a, self.a)]
        self.taken = 0

    def look(self) -> _Features:
        """What the answers' movements are linear in."""
        p = self.point
        depth = len(p.square_b)
        # B* or ΔA is 0 in a layer that the pilot has not moved: nothing is along it
        beta = _by_layer(self.b * p.b, p.layer_b, depth) / p.square_b.clamp(min=1e-30)
        alpha = _by_layer(self.a * p.a, p.layer_a, depth) / p.square_a.clamp(min=1e-30)
        along = float((p.weight_b * p.b) @ self.b + (p.weight_a * p.a) @ self.a)
        per_b, per_a = beta[p.layer_b], beta[p.layer_a]
        b0 = p.weight_b * (self.b - per_b * p.b)
        return _Features(
            beta=beta,
            joint=alpha * beta,
            b0=b0,
            b1=alpha[p.layer_b] * b0,
            a1=per_a * p.weight_a * (self.a - alpha[p.layer_a] * p.a),
            alpha_b=alpha[p.layer_b],
            beta_a=per_a,
            extrapolation=along / p.length if p.length > 0 else 0.0,
        )

    def move(self, to_b: Tensor, to_a: Tensor, rate: float, training: Training) -> float:
        """One AdamW step down a gradient, clipped as in training; returns its norm."""
        p = self.point
        norm = math.sqrt(float((p.weight_b * to_b).dot(to_b) + (p.weight_a * to_a).dot(to_a)))
        clip = min(1.0, training.max_grad_norm / (norm + 1e-6))
        self.taken += 1
        first, second = 1 - 0.9**self.taken, 1 - 0.999**self.taken
        for i, (weights, unclipped) in enumerate(((self.b, to_b), (self.a, to_a))):
            mean, square = self.moments[2 * i : 2 * i + 2]
            gradient = unclipped * clip
            mean.lerp_(gradient, 0.1)
            square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            weights.addcdiv_(mean, (square / second).sqrt_().add_(1e-8), value=-rate / first)
            if training.weight_decay and weights is self.b:
                weights.mul_(1 - rate * training.weight_decay)  # A's decay is towards 0, not A₀: left out
        return norm


@dataclass(frozen=True)
class _Features:
    beta: Tensor
    joint: Tensor
    b0: Tensor
    b1: Tensor
    a1: Tensor
    alpha_b: Tensor
    beta_a: Tensor
    extrapolation: float


def _movement(kernel: Kernel, at: _Features, rows: Tensor, parts: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """[len(rows)] nats; parts: b₀, b₁ and a₁ of these rows."""
    g = kernel.gradients
    linear = parts[0] @ at.b0 + parts[1] @ at.b1 + parts[2] @ at.a1
    exact = g.along[rows] @ at.beta + g.cross[rows] @ at.joint
    return linear + exact + kernel.offset[rows] * _paid(at.extrapolation)


def _paid(extrapolation: float) -> float:
    """Share of e: a parabola with its top at the pilot's end, where value and slope are known, then level."""
    return 1.0 - (1.0 - min(max(extrapolation, 0.0), 1.0)) ** 2


def _parts(kernel: Kernel, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    g = kernel.gradients
    return g.b0[rows].float(), g.b1[rows].float(), g.a1[rows].float()


def simulate(kernel: Kernel, plan: Plan, *, watched: Tensor, read_after: Sequence[int]) -> Trajectory:
    """Run a plan.

    watched     rows whose movement is read at every step, as the guard reads neutral text
    read_after  steps after which all rows are read

    A loss's KL term, which is measured on answers to other prompts, counts as 0.
    """
    walk = _Walk(kernel.point)
    at = walk.look()
    parts = _parts(kernel, watched)
    steps: list[Step] = []
    moved: dict[int, _Features] = {}
    extrapolation: list[float] = []
    for number, indices in enumerate(plan.order, start=1):
        rows = plan.examples[torch.tensor(indices)]
        here = _parts(kernel, rows.flatten())
        sums = kernel.base[rows] + _movement(kernel, at, rows.flatten(), here).view_as(rows)
        counts, reference = kernel.counts[rows].float(), kernel.base[rows]
        leaf = sums.detach().requires_grad_()
        losses = plan.objective.losses(leaf, counts, reference, None)
        total = plan.objective.total(counts)
        (slopes,) = torch.autograd.grad(losses.sum() / total, leaf)
        measures = plan.objective.measures(sums, counts, reference)
        slopes = slopes.flatten()
        to_b = slopes @ here[0] + at.alpha_b * (slopes @ here[1])
        to_a = at.beta_a * (slopes @ here[2])
        rate = rate_at(number, len(plan.order), plan.training)
        norm = walk.move(to_b, to_a, rate, plan.training)
        at = walk.look()
        steps.append(
            Step(
                step=number,
                loss=float(losses.detach().sum() / total),
                grad_norm=norm,
                margin=_mean(measures.get("margin")),
                chosen_drop=_mean(measures.get("chosen_drop")),
                watched=_movement(kernel, at, watched, parts),
            )
        )
        extrapolation.append(at.extrapolation)
        if number in read_after:
            moved[number] = at
    return Trajectory(tuple(steps), _read_all(kernel, moved), tuple(extrapolation))


def _mean(values: Sequence[float] | None) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _read_all(kernel: Kernel, features: dict[int, _Features]) -> dict[int, Tensor]:
    """All rows at some moments, in blocks: the gradients are read once."""
    if not features:
        return {}
    g, moments = kernel.gradients, list(features.values())
    b0, b1, a1 = (torch.stack([getattr(m, name) for m in moments], dim=1) for name in ("b0", "b1", "a1"))
    beta, joint = (torch.stack([getattr(m, name) for m in moments], dim=1) for name in ("beta", "joint"))
    paid = torch.tensor([_paid(m.extrapolation) for m in moments])
    blocks = []
    for rows in torch.split(torch.arange(len(kernel.base)), 64):
        part = _parts(kernel, rows)
        blocks.append(part[0] @ b0 + part[1] @ b1 + part[2] @ a1)
    all_rows = torch.cat(blocks) + g.along @ beta + g.cross @ joint + kernel.offset[:, None] * paid
    return {step: all_rows[:, k] for k, step in enumerate(features)}
