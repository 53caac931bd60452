"""What a step minimises, in one shape: a loss over pairs, the likelihood of answers, the divergence from a teacher."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from conviction.core.wording import WRONG_BY_SUMS, rounded_down
from conviction.training.losses import PairLogps, find_loss, margin, sft_term


class Objective(Protocol):
    """A loss as the loop sees it. n examples with a answers each; all log-probs summed over tokens, nats.

    An answer that an example does not have counts 0 tokens. With a teacher, divergences stand in place of log-probs.
    """

    @property
    def pairs(self) -> bool:
        """Whether examples are preference pairs, whose log-probs under the untouched model are wanted."""

    def total(self, counts: Tensor) -> float:
        """What a step's losses are divided by; counts [n, a]: tokens of its examples' answers."""

    def losses(self, sums: Tensor, counts: Tensor, reference: Tensor, kl: Tensor | None) -> Tensor:
        """[n] from [n, a] each: losses times weights."""

    def measures(self, sums: Tensor, counts: Tensor, reference: Tensor) -> dict[str, list[float]]:
        """Per example, for the record."""


@dataclass(frozen=True, kw_only=True)
class Preference:
    """A loss of ``LOSSES`` over pairs, with ``sft_weight`` times the chosen answers' likelihood."""

    loss: str
    beta: float
    parameters: Mapping[str, float] = field(default_factory=dict)
    sft_weight: float = 0.0
    pairs: bool = True

    @property
    def needs_kl(self) -> bool:
        """Whether the loss measures pairs against the policy's distance from the reference."""
        return find_loss(self.loss).needs_kl

    def total(self, counts: Tensor) -> float:
        """A pair is a pair."""
        return float(len(counts))

    def losses(self, sums: Tensor, counts: Tensor, reference: Tensor, kl: Tensor | None) -> Tensor:
        """[n] losses."""
        loss, logps = find_loss(self.loss), _pair_logps(sums, counts, reference)
        extra: dict[str, Any] = dict(self.parameters)
        if loss.needs_kl:
            extra["kl"] = torch.zeros((), device=sums.device) if kl is None else kl
        values = loss.function(logps, beta=self.beta, **extra)
        return values + self.sft_weight * sft_term(logps) if self.sft_weight else values

    def measures(self, sums: Tensor, counts: Tensor, reference: Tensor) -> dict[str, list[float]]:
        """Margin as the loss sees it, margin_nats summed; drops and means per token; flipped: chosen is likelier."""
        logps = _pair_logps(sums, counts, reference)
        values = {
            "margin": margin(find_loss(self.loss), logps, self.beta),
            "margin_nats": logps.delta,
            "correct": (logps.delta > 0).float(),
            "flipped": (logps.chosen > logps.rejected).float(),
            "chosen_logp_mean": logps.chosen_mean,
            "rejected_logp_mean": logps.rejected_mean,
            "chosen_drop": -logps.chosen_logratio / logps.chosen_tokens,
        }
        return {name: v.detach().double().tolist() for name, v in values.items()}


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """Mean negative log-likelihood per token: supervised fine-tuning, and pretraining on documents."""

    pairs: bool = False

    def total(self, counts: Tensor) -> float:
        """Every token counts the same."""
        return float(counts.sum())

    def losses(self, sums: Tensor, counts: Tensor, reference: Tensor, kl: Tensor | None) -> Tensor:
        """[n] summed over tokens."""
        del counts, reference, kl
        return -sums.sum(-1)

    def measures(self, sums: Tensor, counts: Tensor, reference: Tensor) -> dict[str, list[float]]:
        """Mean log-prob per token."""
        del reference
        return {"logp_mean": (sums.sum(-1) / counts.sum(-1)).detach().double().tolist()}


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """Mean KL(teacher || policy) per token, over the whole vocabulary (``training.divergence``).

    context        what the teacher reads before a conversation, and its policy does not
    strength       α: the teacher's logits are base + α·(context - base)
    anchor_weight  of the examples whose teacher reads nothing else
    """

    context: str
    strength: float
    anchor_weight: float
    pairs: bool = False

    def total(self, counts: Tensor) -> float:
        """Every token counts the same."""
        return float(counts.sum())

    def losses(self, sums: Tensor, counts: Tensor, reference: Tensor, kl: Tensor | None) -> Tensor:
        """[n] summed over tokens; ``sums`` are of divergences."""
        del counts, reference, kl
        return sums.sum(-1)

    def measures(self, sums: Tensor, counts: Tensor, reference: Tensor) -> dict[str, list[float]]:
        """Mean divergence per token."""
        del reference
        return {"kl_mean": (sums.sum(-1) / counts.sum(-1)).detach().double().tolist()}


def explain_flip_margin(
    objective: Preference, reference: Sequence[Sequence[float]], last_margin: float, cap: float
) -> str:
    """Whether the pairs could have been flipped at all: the margin that it takes against the one there was.

    A pair that the untouched model ranks the wrong way round by c nats is ranked
    right exactly when its margin passes β·c (Chen et al. 2405.19534).
    """
    wrong = [rejected - chosen for chosen, rejected in reference if rejected > chosen]
    if not wrong:
        return "No pair needed a flip: the untouched model ranks every pair as wanted."
    share = f"{len(wrong)} of {len(reference)} pairs"
    if not find_loss(objective.loss).flips_at_margin:
        return f"{share} were {WRONG_BY_SUMS} at the start; '{objective.loss}' has no margin for their flip."
    c = statistics.median(wrong)
    needed = objective.beta * c
    text = (
        f"Flipping the median of the {share} that are {WRONG_BY_SUMS} in the untouched model takes a margin of "
        f"β·c = {objective.beta:g} · {c:.0f} nats = {needed:.1f}; the last margin was {last_margin:.1f}."
    )
    if needed > cap:
        text += (
            f" That is over {cap:g}, the margin at which collapses were seen: β ≤ {rounded_down(cap / c):g} would do."
        )
    return text


def _pair_logps(sums: Tensor, counts: Tensor, reference: Tensor) -> PairLogps:
    return PairLogps(
        chosen=sums[:, 0],
        rejected=sums[:, 1],
        reference_chosen=reference[:, 0],
        reference_rejected=reference[:, 1],
        chosen_tokens=counts[:, 0],
        rejected_tokens=counts[:, 1],
    )
