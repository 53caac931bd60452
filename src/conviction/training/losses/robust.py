"""Robust DPO: unbiased by labels that are flipped by chance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conviction.training.losses.loss import ForeignName, Loss
from conviction.training.losses.pairs import SMOOTHING, PairLogps, check_smoothing, log_sigmoid

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LOSS", "robust"]


def robust(pairs: PairLogps, *, beta: float = 0.1, label_smoothing: float = 0.1) -> Tensor:
    """DPO unbiased by labels flipped with probability ε = label_smoothing (Chowdhury et al., arXiv 2403.00409).

    ((1 − ε)·L(delta) − ε·L(−delta)) / (1 − 2ε), L = −log σ(β·): its mean over flipped
    and unflipped labels is the DPO loss of the clean pair. It is in nats, and negative for
    pairs well on their way. TRL: ``robust``, where ε defaults to 0, which is ``dpo``.
    """
    check_smoothing(label_smoothing)
    z = beta * pairs.delta
    return (label_smoothing * log_sigmoid(-z) - (1 - label_smoothing) * log_sigmoid(z)) / (1 - 2 * label_smoothing)


TRL = ForeignName(name="robust", parameters={"label_smoothing": "label_smoothing"})
LOSS = Loss(robust, compares="delta", options=(SMOOTHING,), paper="Chowdhury et al., arXiv 2403.00409", trl=TRL)
