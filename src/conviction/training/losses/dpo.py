"""DPO, and its conservative form with label smoothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conviction.training.losses.loss import Loss
from conviction.training.losses.pairs import SMOOTHING, PairLogps, check_smoothing, log_sigmoid

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LOSS", "dpo"]


def dpo(pairs: PairLogps, *, beta: float = 0.1, label_smoothing: float = 0.0) -> Tensor:
    """−log σ(β·delta), nats (Rafailov et al., arXiv 2305.18290, Eq. 7). TRL: ``sigmoid``.

    With label_smoothing ε it is conservative DPO, (1 − ε)·L(delta) + ε·L(−delta)
    (Mitchell, "A note on DPO with noisy preferences", 2023), least at the finite
    β·delta = log((1 − ε)/ε). TRL's DPO trainer ignores ε here; its CPO trainer has it.
    """
    check_smoothing(label_smoothing)
    z = beta * pairs.delta
    return -(1 - label_smoothing) * log_sigmoid(z) - label_smoothing * log_sigmoid(-z)


LOSS = Loss(
    dpo, compares="delta", options=(SMOOTHING,), paper="Rafailov et al., arXiv 2305.18290", trl="sigmoid", mlx="sigmoid"
)
