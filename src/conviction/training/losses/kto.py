"""KTO: each answer by itself, desirable or undesirable, against the distance from the reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conviction.core.options import Option
from conviction.training.losses.loss import Loss
from conviction.training.losses.pairs import PairLogps

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LOSS", "kto"]

DESIRABLE_WEIGHT = Option(name="desirable_weight", meaning="weight of chosen answers", above=0)
UNDESIRABLE_WEIGHT = Option(name="undesirable_weight", meaning="weight of rejected answers", above=0)


def kto(
    pairs: PairLogps,
    *,
    kl: Tensor,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """½·(w_d·σ(β·(kl − r_chosen)) + w_u·σ(β·(r_rejected − kl))), unitless, r the log-ratio (arXiv 2402.01306, Eq. 7).

    KTO (Ethayarajh et al.) with each pair as one desirable and one undesirable
    example: thanks to the ½, the mean over n pairs is TRL's mean over the 2n examples.
    kl is the batch's estimate of KL(policy, reference), nats: the mean log-ratio of
    answers to other prompts. It carries no gradient, and below 0 it counts as 0.
    """
    floor = kl.detach().clamp(min=0)
    # σ(−x) for the paper's 1 − σ(x), which rounds to 0 long before
    desirable = (beta * (floor - pairs.chosen_logratio)).sigmoid()
    undesirable = (beta * (pairs.rejected_logratio - floor)).sigmoid()
    return (desirable_weight * desirable + undesirable_weight * undesirable) / 2


LOSS = Loss(
    kto,
    compares="delta",
    options=(DESIRABLE_WEIGHT, UNDESIRABLE_WEIGHT),
    paper="Ethayarajh et al., arXiv 2402.01306",
    no_flip_point="it weighs each answer by itself, against answers to other prompts",
)
