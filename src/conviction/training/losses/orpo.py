"""ORPO: likelihood of the chosen answer and an odds ratio, without a reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conviction.training.losses.loss import ForeignName, Loss
from conviction.training.losses.pairs import PairLogps, log_sigmoid, sft_term

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LOSS", "orpo"]

# An answer whose tokens are all certain has infinite odds. A mean log-prob above this is noise of the fp32 softmax.
CERTAIN = -1e-6


def orpo(pairs: PairLogps, *, beta: float = 0.1) -> Tensor:
    """sft_term − β·log σ(log odds(chosen) − log odds(rejected)), nats (Hong et al., arXiv 2403.07691, Eqs. 6–7, λ = β).

    odds(y) = p/(1 − p) with p the geometric mean of the tokens' probabilities.
    The NLL covers the answer, as the paper's does, averaged per pair; TRL's covers
    prompt and answer, averaged over all tokens of the batch.
    """
    return sft_term(pairs) - beta * log_sigmoid(_log_odds(pairs.chosen_mean) - _log_odds(pairs.rejected_mean))


def _log_odds(logp: Tensor) -> Tensor:
    """log(p / (1 − p)) of log p < 0; flat above ``CERTAIN``, so that values and gradients stay finite."""
    logp = logp.clamp(max=CERTAIN)
    # expm1 is exact near 0, where 1 − p cancels; far below, log(1 − p) is 0 to within fp32
    return logp - (-logp.expm1()).log()


LOSS = Loss(
    orpo,
    compares="gap_mean",
    paper="Hong et al., arXiv 2403.07691",
    mlx=ForeignName(name="orpo", key="train_mode"),
    no_flip_point="its likelihood term depends on where the chosen answer ends, not only on the pair's difference",
)
