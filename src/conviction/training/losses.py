"""Losses over pairs: pure functions of summed log-probs and token counts.

Each takes a ``PairLogps`` of n pairs and returns one loss a pair, a tensor [n]
with gradients; the caller averages. ``beta`` is each paper's own, so its unit
and its useful range differ from loss to loss: per-token losses see differences
some hundred times smaller than summed ones. Where TRL 1.16 has the same loss,
tests/test_losses.py holds this file to TRL's number.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from conviction.errors import InputError, nearest

__all__ = [
    "LOSSES",
    "Loss",
    "PairLogps",
    "dpo",
    "dpo_norm",
    "dpop",
    "find_loss",
    "hinge",
    "hypo",
    "ipo",
    "kto",
    "margin",
    "orpo",
    "parameters",
    "robust",
    "sft_term",
    "simpo",
]

# An answer whose tokens are all certain has infinite odds. A mean log-prob above this is noise of the fp32 softmax.
CERTAIN = -1e-6


@dataclass(frozen=True, eq=False)
class PairLogps:
    """Log-probs of n pairs, nats; every field a tensor [n], fp32.

    chosen, rejected      log p(answer | prompt) of the policy, summed over the answer's tokens
    reference_chosen, reference_rejected    the same of the untouched model (zeros for reference-free losses)
    chosen_tokens, rejected_tokens          tokens in each answer, at least 1
    """

    chosen: Tensor
    rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor

    def __post_init__(self) -> None:
        shapes = {field.name: tuple(getattr(self, field.name).shape) for field in fields(self)}
        # A field [n, 1] would broadcast to n × n pairs without a word.
        if self.chosen.dim() != 1 or len(set(shapes.values())) > 1:
            raise ValueError(f"all fields of PairLogps have one shape [n]: {shapes}")

    @property
    def chosen_logratio(self) -> Tensor:
        """How far the chosen answer has moved: log π(chosen) − log π_ref(chosen), nats."""
        return self.chosen - self.reference_chosen

    @property
    def rejected_logratio(self) -> Tensor:
        """How far the rejected answer has moved: log π(rejected) − log π_ref(rejected), nats."""
        return self.rejected - self.reference_rejected

    @property
    def delta(self) -> Tensor:
        """How far the pair has moved towards chosen: difference of the log-ratios, nats."""
        return self.chosen_logratio - self.rejected_logratio

    @property
    def chosen_mean(self) -> Tensor:
        """Policy's log-prob of the chosen answer per token, nats."""
        return self.chosen / self.chosen_tokens

    @property
    def rejected_mean(self) -> Tensor:
        """Policy's log-prob of the rejected answer per token, nats."""
        return self.rejected / self.rejected_tokens

    @property
    def gap_mean(self) -> Tensor:
        """Difference of the two answers' log-probs per token under the policy, nats."""
        return self.chosen_mean - self.rejected_mean

    @property
    def delta_mean(self) -> Tensor:
        """``delta`` with each log-ratio divided by its own answer's tokens, nats per token."""
        return self.chosen_logratio / self.chosen_tokens - self.rejected_logratio / self.rejected_tokens


def dpo(pairs: PairLogps, *, beta: float = 0.1, label_smoothing: float = 0.0) -> Tensor:
    """−log σ(β·delta), nats (Rafailov et al., arXiv 2305.18290, Eq. 7). TRL: ``sigmoid``.

    With label_smoothing ε it is conservative DPO, (1 − ε)·L(delta) + ε·L(−delta)
    (Mitchell, "A note on DPO with noisy preferences", 2023), least at the finite
    β·delta = log((1 − ε)/ε). TRL's DPO trainer ignores ε here; its CPO trainer has it.
    """
    _check_smoothing(label_smoothing)
    z = beta * pairs.delta
    return -(1 - label_smoothing) * logsigmoid(z) - label_smoothing * logsigmoid(-z)


def robust(pairs: PairLogps, *, beta: float = 0.1, label_smoothing: float = 0.1) -> Tensor:
    """DPO unbiased by labels flipped with probability ε = label_smoothing (Chowdhury et al., arXiv 2403.00409).

    ((1 − ε)·L(delta) − ε·L(−delta)) / (1 − 2ε), L = −log σ(β·): its mean over flipped
    and unflipped labels is the DPO loss of the clean pair. It is in nats, and negative for
    pairs well on their way. TRL: ``robust``, where ε defaults to 0, which is ``dpo``.
    """
    _check_smoothing(label_smoothing)
    z = beta * pairs.delta
    return (label_smoothing * logsigmoid(-z) - (1 - label_smoothing) * logsigmoid(z)) / (1 - 2 * label_smoothing)


def hinge(pairs: PairLogps, *, beta: float = 0.1) -> Tensor:
    """max(0, 1 − β·delta), unitless: no gradient beyond a margin of 1 (Liu et al., RSO, arXiv 2309.06657).

    SLiC's hinge (arXiv 2305.10425) on DPO's reward. TRL: ``hinge``.
    """
    return torch.relu(1 - beta * pairs.delta)


def ipo(pairs: PairLogps, *, beta: float = 0.1) -> Tensor:
    """(delta_mean − 1/(2β))², nats² per token² (Azar et al., arXiv 2310.12036, Eq. 17, whose τ is β).

    Log-ratios are per token, as TRL has them after asking the authors, though the
    paper does not say so. Beyond 1/(2β) nats per token the loss rises again.
    """
    return (pairs.delta_mean - 1 / (2 * beta)) ** 2


def dpo_norm(pairs: PairLogps, *, beta: float = 5.0) -> Tensor:
    """−log σ(β·delta_mean), nats: DPO on log-ratios per token (Tülu 3, arXiv 2411.15124, §5). TRL: ``sigmoid_norm``."""
    return -logsigmoid(beta * pairs.delta_mean)


def dpop(pairs: PairLogps, *, beta: float = 0.1, penalty: float = 5.0) -> Tensor:
    """−log σ(β·(delta − λ·max(0, log π_ref(chosen) − log π(chosen)))), nats (Pal et al., arXiv 2402.13228, Eq. 3).

    DPO with a price λ = penalty on letting the chosen answer fall. The penalty is
    inside the sigmoid and under β, as the paper's second version corrects it; the
    authors saw little difference for λ from 5 to 500 (abacusai/smaug issue 2).
    """
    fallen = torch.relu(-pairs.chosen_logratio)
    return -logsigmoid(beta * (pairs.delta - penalty * fallen))


def hypo(pairs: PairLogps, *, beta: float = 0.1) -> Tensor:
    """−log σ(β·(Δ − max(0, Δ_ref))), nats, Δ = log p(chosen) − log p(rejected) (Yuan et al., arXiv 2602.11902).

    DPO where the reference already prefers chosen. Where it prefers rejected it
    counts as neutral, so the gradient lasts until the policy itself prefers chosen.
    """
    reference = torch.relu(pairs.reference_chosen - pairs.reference_rejected)
    return -logsigmoid(beta * (pairs.chosen - pairs.rejected - reference))


def simpo(pairs: PairLogps, *, beta: float = 2.0, gamma: float = 1.0) -> Tensor:
    """−log σ(β·(log π(chosen)/|chosen| − log π(rejected)/|rejected|) − γ), nats (Meng et al., arXiv 2405.14734, Eq. 6).

    γ is the paper's target margin, after β. TRL's CPO trainer has the same γ
    (``simpo_gamma``, default 0.5 at β 0.1; it subtracts γ/β before multiplying by β)
    and adds ``cpo_alpha`` times the NLL, which the paper does not. The authors' code
    takes γ/β instead (``gamma_beta_ratio``, 0.5 to start from, hence γ = 1 at β = 2).
    """
    return -logsigmoid(beta * pairs.gap_mean - gamma)


def orpo(pairs: PairLogps, *, beta: float = 0.1) -> Tensor:
    """sft_term − β·log σ(log odds(chosen) − log odds(rejected)), nats (Hong et al., arXiv 2403.07691, Eqs. 6–7, λ = β).

    odds(y) = p/(1 − p) with p the geometric mean of the tokens' probabilities.
    The NLL covers the answer, as the paper's does, averaged per pair; TRL's covers
    prompt and answer, averaged over all tokens of the batch.
    """
    return sft_term(pairs) - beta * logsigmoid(_log_odds(pairs.chosen_mean) - _log_odds(pairs.rejected_mean))


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
    desirable = torch.sigmoid(beta * (floor - pairs.chosen_logratio))
    undesirable = torch.sigmoid(beta * (pairs.rejected_logratio - floor))
    return (desirable_weight * desirable + undesirable_weight * undesirable) / 2


def sft_term(pairs: PairLogps) -> Tensor:
    """−log π(chosen) per token, nats, to be mixed in as ``loss + weight · sft_term`` (Pang et al., arXiv 2404.19733).

    The paper's Eq. 1 weighs the DPO term instead: its α is 1/weight. TRL's ``sft``
    averages over all tokens of the batch, so that long answers count for more there.
    """
    return -pairs.chosen_mean


def _check_smoothing(label_smoothing: float) -> None:
    if not 0 <= label_smoothing < 0.5:
        raise InputError(
            f"label_smoothing is {label_smoothing}",
            hint="it is the share of flipped labels: at least 0 and below 0.5",
        )


def _log_odds(logp: Tensor) -> Tensor:
    """log(p / (1 − p)) of log p < 0; flat above ``CERTAIN``, so that values and gradients stay finite."""
    logp = logp.clamp(max=CERTAIN)
    # expm1 is exact near 0, where 1 − p cancels; far below, log(1 − p) is 0 to within fp32
    return logp - torch.log(-torch.expm1(logp))


@dataclass(frozen=True)
class Loss:
    """A loss by its name.

    function    (PairLogps, keyword parameters) → Tensor [n]
    reference   whether it needs the untouched model's log-probs
    per_token   whether it compares log-probs per token: margins are then β times a difference per token
    paper       where it comes from
    """

    name: str
    function: Callable[..., Tensor]
    reference: bool
    per_token: bool
    paper: str


LOSSES: dict[str, Loss] = {
    loss.name: loss
    for loss in (
        Loss("dpo", dpo, reference=True, per_token=False, paper="Rafailov et al., arXiv 2305.18290"),
        Loss("robust", robust, reference=True, per_token=False, paper="Chowdhury et al., arXiv 2403.00409"),
        Loss("hinge", hinge, reference=True, per_token=False, paper="Liu et al., arXiv 2309.06657"),
        Loss("ipo", ipo, reference=True, per_token=True, paper="Azar et al., arXiv 2310.12036"),
        Loss("dpo_norm", dpo_norm, reference=True, per_token=True, paper="Lambert et al., arXiv 2411.15124"),
        Loss("dpop", dpop, reference=True, per_token=False, paper="Pal et al., arXiv 2402.13228"),
        Loss("hypo", hypo, reference=True, per_token=False, paper="Yuan et al., arXiv 2602.11902"),
        Loss("simpo", simpo, reference=False, per_token=True, paper="Meng et al., arXiv 2405.14734"),
        Loss("orpo", orpo, reference=False, per_token=True, paper="Hong et al., arXiv 2403.07691"),
        Loss("kto", kto, reference=True, per_token=False, paper="Ethayarajh et al., arXiv 2402.01306"),
    )
}


def find_loss(name: str) -> Loss:
    """The loss of this name; InputError names the nearest known one."""
    if name not in LOSSES:
        raise InputError(f"unknown loss '{name}'", hint=f"{nearest(name, LOSSES)}use one of: {', '.join(LOSSES)}")
    return LOSSES[name]


def parameters(name: str) -> dict[str, float]:
    """A loss's own parameters and their defaults (what only a batch can give, KTO's kl, is not among them)."""
    given = inspect.signature(find_loss(name).function).parameters.values()
    return {p.name: p.default for p in given if p.default is not p.empty}


def margin(loss: Loss, pairs: PairLogps, beta: float) -> Tensor:
    """Reward margin of each pair, unitless, [n]: β times what the loss compares, without its own offsets.

    That is β·delta, as TRL reports it (``rewards/margins``), and for the losses
    without a reference β·gap_mean, as TRL's CPO and ORPO trainers do. For dpo_norm
    and ipo it is β·delta_mean, which is what these losses see; TRL reports the
    summed β·delta there, which grows with the answers' length.
    """
    if not loss.reference:
        return beta * pairs.gap_mean
    return beta * (pairs.delta_mean if loss.per_token else pairs.delta)
