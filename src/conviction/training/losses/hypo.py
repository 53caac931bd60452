"""HyPO: a reference that prefers the rejected answer counts as neutral."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conviction.training.losses.loss import Loss
from conviction.training.losses.pairs import PairLogps, log_sigmoid

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LOSS", "hypo"]


def hypo(pairs: PairLogps, *, beta: float = 0.1) -> Tensor:
    """−log σ(β·(Δ − max(0, Δ_ref))), nats, Δ = log p(chosen) − log p(rejected) (Yuan et al., arXiv 2602.11902).

    DPO where the reference already prefers chosen. Where it prefers rejected it
    counts as neutral, so the gradient lasts until the policy itself prefers chosen.
    """
    reference = (pairs.reference_chosen - pairs.reference_rejected).relu()
    return -log_sigmoid(beta * (pairs.chosen - pairs.rejected - reference))


LOSS = Loss(hypo, compares="delta", paper="Yuan et al., arXiv 2602.11902")
