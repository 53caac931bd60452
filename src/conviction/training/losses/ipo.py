"""IPO: a square around a target difference, which the loss does not want exceeded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conviction.training.losses.loss import Loss
from conviction.training.losses.pairs import PairLogps

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LOSS", "ipo"]


def ipo(pairs: PairLogps, *, beta: float = 0.1) -> Tensor:
    """(delta_mean − 1/(2β))², nats² per token² (Azar et al., arXiv 2310.12036, Eq. 17, whose τ is β).

    Log-ratios are per token, as TRL has them after asking the authors, though the
    paper does not say so. Beyond 1/(2β) nats per token the loss rises again.
    """
    return (pairs.delta_mean - 1 / (2 * beta)) ** 2


LOSS = Loss(ipo, compares="delta_mean", paper="Azar et al., arXiv 2310.12036", trl="ipo", mlx="ipo")
