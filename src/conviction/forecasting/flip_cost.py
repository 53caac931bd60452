"""What a flip costs, by arithmetic: no training, no gradients, only log-probs of the untouched model.

A pair that the model ranks the wrong way round by c nats is ranked right once the
difference of its log-ratios, delta, reaches c (Chen et al., arXiv 2405.19534). At that
point a loss has a known value, the reward margin is β·c, and what is left of the
gradient says whether the loss still pushes there. Losses per token reckon with c per
token. Where a loss looks at one answer alone, or asks for the answers of other prompts,
there is no such point, and no arithmetic: its ``no_flip_point`` says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from conviction.core.wording import percent, rounded_down
from conviction.forecasting.records import FlipCost, wrong_by
from conviction.training.losses import Loss, PairLogps, find_loss, margin

__all__ = ["flip_cost", "flip_points"]

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
FADED = 0.01  # of the gradient weight at the start: less is as good as nothing


@dataclass(frozen=True, eq=False)
class FlipPoints:
    """Arrays [n] over the pairs that need a flip: c, and margin, loss and −∂loss/∂delta at the point of the flip.

    weight and weight_at_start have one unit, so that their ratio says what is left.
    """

    c: NDArray[np.float64]
    margin: NDArray[np.float64]
    loss: NDArray[np.float64]
    weight: NDArray[np.float64]
    weight_at_start: NDArray[np.float64]


def flip_points(
    loss: Loss, beta: float, parameters: Mapping[str, float], reference: Tensor, counts: Tensor
) -> FlipPoints:
    """Where each wrong pair flips; reference [n, 2] summed log-probs of chosen and rejected, counts [n, 2] tokens.

    What a pair still lacks is taken half from either answer: chosen rises, so that
    no penalty on its fall applies. ``loss`` must have a closed form.
    """
    per = counts.double() if loss.per_token else torch.ones_like(counts, dtype=torch.float64)
    start = reference.double()
    shortfall = start[:, 1] / per[:, 1] - start[:, 0] / per[:, 0]
    wrong = shortfall > 0
    c, start, per, counts = shortfall[wrong], start[wrong], per[wrong], counts[wrong].double()
    _, slope_at_start, _ = _at(loss, beta, parameters, start, counts, per, torch.zeros_like(c))
    value, slope, margins = _at(loss, beta, parameters, start, counts, per, c)
    return FlipPoints(*(t.numpy() for t in (c, margins, value, -slope, -slope_at_start)))


def _at(
    loss: Loss, beta: float, parameters: Mapping[str, float], start: Tensor, counts: Tensor, per: Tensor, delta: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, ∂loss/∂delta, margin) after a movement of ``delta``, each [n]."""
    leaf = delta.clone().requires_grad_()
    pairs = PairLogps(
        chosen=start[:, 0] + per[:, 0] * leaf / 2,
        rejected=start[:, 1] - per[:, 1] * leaf / 2,
        reference_chosen=start[:, 0],
        reference_rejected=start[:, 1],
        chosen_tokens=counts[:, 0],
        rejected_tokens=counts[:, 1],
    )
    values = loss.function(pairs, beta=beta, **parameters)
    (slope,) = torch.autograd.grad(values.sum(), leaf)
    return values.detach(), slope, margin(loss, pairs, beta).detach()


def flip_cost(
    name: str,
    beta: float,
    parameters: Mapping[str, float],
    reference: Sequence[Sequence[float]],
    counts: Sequence[Sequence[int]],
    *,
    cap: float,
) -> FlipCost | None:
    """What the pairs' flips cost under a loss, as a table over the data; None where it has no closed form.

    cap  the reward margin that a run should stay under: the guard's sign of collapse
    """
    loss = find_loss(name)
    if loss.no_flip_point:
        return None
    points = flip_points(loss, beta, parameters, torch.tensor(reference), torch.tensor(counts))
    wrong, pairs = len(points.c), len(reference)
    if not wrong:
        return FlipCost(
            loss=name, beta=beta, pairs=pairs, wrong=0, per_token=loss.per_token, cap=cap, over=0, faded=0,
            summary="no pair needs a flip: the untouched model ranks every pair as wanted",
        )  # fmt: skip
    left = points.weight / points.weight_at_start
    over = int((points.margin > cap).sum())
    faded = int((left < FADED).sum())
    scales = bool((points.margin > 0).any())  # without a reference the margin at the flip is 0, whatever β is
    half, most = (rounded_down(cap / float(np.quantile(points.c, q))) if scales else None for q in (0.5, 0.95))
    table = {"c": points.c, "margin": points.margin, "loss": points.loss, "left": left}
    return FlipCost(
        loss=name,
        beta=beta,
        pairs=pairs,
        wrong=wrong,
        per_token=loss.per_token,
        cap=cap,
        over=over,
        faded=faded,
        quantiles={key: {f"{q:g}": float(np.quantile(v, q)) for q in LEVELS} for key, v in table.items()},
        beta_for_half=half,
        beta_for_most=most,
        summary=_summary(loss, beta, points, cap, half, faded),
    )


def _summary(loss: Loss, beta: float, points: FlipPoints, cap: float, half: float | None, faded: int) -> str:
    needed, wrong, how = float(np.median(points.margin)), len(points.c), wrong_by(loss.per_token)
    if needed > cap:
        return (
            f"half of the {wrong} training pairs {how} cannot flip inside the cap at β = {beta:g}: they need a "
            f"margin of {needed:.1f} or more, the cap is {cap:g}; β ≤ {half:g} would do"
        )
    if 2 * faded > wrong:
        return (
            f"{loss.name} stops pushing before {faded} of {wrong} training pairs {how} flip: less than "
            f"{percent(FADED)} of its gradient is left there (β = {beta:g})"
        )
    inside = int((points.margin <= cap).sum())
    return f"{inside} of {wrong} training pairs {how} can flip inside the cap of {cap:g} at β = {beta:g}"
