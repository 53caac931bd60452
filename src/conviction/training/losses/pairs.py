"""What the losses share: log-probs of pairs, and the pure pieces that several of them are made of.

No torch here before a loss is computed: the options that losses have are listed without it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from conviction.core.options import Option
from conviction.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BETA", "SMOOTHING", "PairLogps", "check_smoothing", "log_sigmoid", "sft_term"]

BETA = Option(name="beta", meaning="strength of the tie to the reference; none: the loss's default", above=0)
SMOOTHING = Option(name="label_smoothing", meaning="share of pairs taken to be mislabelled", at_least=0, below=0.5)


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


def log_sigmoid(values: Tensor) -> Tensor:
    """Log σ of each value, nats; exact where σ rounds to 0."""
    from torch.nn.functional import logsigmoid

    return logsigmoid(values)


def sft_term(pairs: PairLogps) -> Tensor:
    """−log π(chosen) per token, nats, to be mixed in as ``loss + weight · sft_term`` (Pang et al., arXiv 2404.19733).

    The paper's Eq. 1 weighs the DPO term instead: its α is 1/weight. TRL's ``sft``
    averages over all tokens of the batch, so that long answers count for more there.
    """
    return -pairs.chosen_mean


def check_smoothing(label_smoothing: float) -> None:
    """Raise InputError for a share of flipped labels with which no loss is left."""
    if not 0 <= label_smoothing < 0.5:
        raise InputError(
            f"label_smoothing is {label_smoothing}",
            hint="it is the share of flipped labels: at least 0 and below 0.5",
        )
