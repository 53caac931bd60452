"""DPO on log-ratios per token, which long answers do not win by their length."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conviction.training.losses.loss import Loss
from conviction.training.losses.pairs import PairLogps, log_sigmoid

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LOSS", "dpo_norm"]


def dpo_norm(pairs: PairLogps, *, beta: float = 5.0) -> Tensor:
    """−log σ(β·delta_mean), nats: DPO on log-ratios per token (Tülu 3, arXiv 2411.15124, §5). TRL: ``sigmoid_norm``."""
    return -log_sigmoid(beta * pairs.delta_mean)


LOSS = Loss(dpo_norm, compares="delta_mean", paper="Lambert et al., arXiv 2411.15124", trl="sigmoid_norm")
