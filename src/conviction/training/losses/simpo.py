"""SimPO: mean log-probs and a target margin, without a reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conviction.core.options import Option
from conviction.training.losses.loss import Loss
from conviction.training.losses.pairs import PairLogps, log_sigmoid

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LOSS", "simpo"]

GAMMA = Option(name="gamma", meaning="target margin", at_least=0)


def simpo(pairs: PairLogps, *, beta: float = 2.0, gamma: float = 1.0) -> Tensor:
    """−log σ(β·(log π(chosen)/|chosen| − log π(rejected)/|rejected|) − γ), nats (Meng et al., arXiv 2405.14734, Eq. 6).

    γ is the paper's target margin, after β. TRL's CPO trainer has the same γ
    (``simpo_gamma``, default 0.5 at β 0.1; it subtracts γ/β before multiplying by β)
    and adds ``cpo_alpha`` times the NLL, which the paper does not. The authors' code
    takes γ/β instead (``gamma_beta_ratio``, 0.5 to start from, hence γ = 1 at β = 2).
    """
    return -log_sigmoid(beta * pairs.gap_mean - gamma)


LOSS = Loss(simpo, compares="gap_mean", options=(GAMMA,), paper="Meng et al., arXiv 2405.14734")
