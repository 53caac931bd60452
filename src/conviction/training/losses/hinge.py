"""A hinge on DPO's margin, as SLiC and RSO have it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conviction.training.losses.loss import MARGIN_FLIP, ForeignName, Loss
from conviction.training.losses.pairs import BETA, PairLogps

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LOSS", "hinge"]


def hinge(pairs: PairLogps, *, beta: float = 0.1) -> Tensor:
    """max(0, 1 − β·delta), unitless: no gradient beyond a margin of 1 (Liu et al., RSO, arXiv 2309.06657).

    SLiC's hinge (arXiv 2305.10425) on DPO's reward. TRL: ``hinge``.
    """
    return (1 - beta * pairs.delta).relu()


LOSS = Loss(
    name="hinge",
    function=hinge,
    options=(BETA,),
    needs_reference=True,
    per_token=False,
    flip_rule=MARGIN_FLIP,
    paper="Liu et al., arXiv 2309.06657",
    trl=ForeignName(name="hinge"),
    mlx=ForeignName(name="hinge"),
)
