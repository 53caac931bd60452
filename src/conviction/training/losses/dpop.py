"""DPO-positive: a price on letting the chosen answer lose probability."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conviction.core.options import Option
from conviction.training.losses.loss import ForeignName, Loss
from conviction.training.losses.pairs import PairLogps, log_sigmoid

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LOSS", "dpop"]

PENALTY = Option(name="penalty", meaning="weight of the chosen answer's loss of probability", at_least=0)


def dpop(pairs: PairLogps, *, beta: float = 0.1, penalty: float = 5.0) -> Tensor:
    """−log σ(β·(delta − λ·max(0, log π_ref(chosen) − log π(chosen)))), nats (Pal et al., arXiv 2402.13228, Eq. 3).

    DPO with a price λ = penalty on letting the chosen answer fall. The penalty is
    inside the sigmoid and under β, as the paper's second version corrects it; the
    authors saw little difference for λ from 5 to 500 (abacusai/smaug issue 2).
    """
    fallen = (-pairs.chosen_logratio).relu()
    return -log_sigmoid(beta * (pairs.delta - penalty * fallen))


MLX = ForeignName(
    name="dpop",
    parameters={"delta": "penalty"},
    note="delta is penalty here, inside the log-sigmoid as in the paper (2402.13228); mlx-lm-lora has it outside",
)
LOSS = Loss(dpop, compares="delta", options=(PENALTY,), paper="Pal et al., arXiv 2402.13228", mlx=MLX)
