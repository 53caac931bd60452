"""A hinge on DPO's margin, as SLiC and RSO have it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conviction.training.losses.loss import Loss
from conviction.training.losses.pairs import PairLogps

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LOSS", "hinge"]


def hinge(pairs: PairLogps, *, beta: float = 0.1) -> Tensor:
    """max(0, 1 − β·delta), unitless: no gradient beyond a margin of 1 (Liu et al., RSO, arXiv 2309.06657).

    SLiC's hinge (arXiv 2305.10425) on DPO's reward. TRL: ``hinge``.
    """
    return (1 - beta * pairs.delta).relu()


LOSS = Loss(hinge, compares="delta", paper="Liu et al., arXiv 2309.06657", trl="hinge", mlx="hinge")
