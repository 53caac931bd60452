"""What a loss is: a pure function of pairs, and the traits that the rest of the program asks it for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from conviction.core.options import Option
from conviction.errors import InputError
from conviction.training.losses.pairs import PairLogps

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MARGIN_FLIP", "PER_TOKEN_FLIP", "FlipRule", "ForeignName", "Loss", "margin"]


@dataclass(frozen=True, kw_only=True)
class FlipRule:
    """What is known of the point where a pair flips that the untouched model ranks the wrong way round by c.

    margin   whether the reward margin is β·c there, c in summed nats (Chen et al., arXiv 2405.19534): such a
             margin can be held against the guard's
    unknown  why the loss and the margin of that point do not follow from the pair's difference; '': they do
    """

    margin: bool = False
    unknown: str = ""


MARGIN_FLIP = FlipRule(margin=True)
PER_TOKEN_FLIP = FlipRule()


@dataclass(frozen=True, kw_only=True)
class ForeignName:
    """What another tool calls a loss.

    name        the value that chooses it
    key         the setting that has this value; '': the one that the tool usually has for its losses
    parameters  the tool's setting → our parameter, for those that the tool has with this loss only
    note        what is different there, for the user
    """

    name: str
    key: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """An entry of ``LOSSES``: a file that ends in ``LOSS = Loss(…)``, and its line in the table.

    function         (PairLogps, keyword parameters) → Tensor [n]; a parameter ``kl`` without a default is given the
                     batch's estimate of KL(policy, reference), nats
    options          what the parameters with defaults mean, and their ranges; one for each
    needs_reference  whether it needs the untouched model's log-probs
    per_token        whether it compares log-probs per token: margins are then β times a difference per token
    flip_rule        what is known of the point where a pair flips
    paper            where it comes from: authors, arXiv number
    trl, mlx         its name in TRL's and in mlx-lm-lora's configs, where they have it
    """

    name: str
    function: Callable[..., Tensor]
    options: tuple[Option, ...]
    needs_reference: bool
    per_token: bool
    flip_rule: FlipRule
    paper: str
    trl: ForeignName | None = None
    mlx: ForeignName | None = None

    def __post_init__(self) -> None:
        declared, parameters = {option.name for option in self.options}, self.parameters.keys()
        if "beta" not in parameters or declared != parameters:
            unclear = ", ".join(sorted(declared ^ parameters)) or "beta"
            raise InputError(
                f"loss '{self.name}': its function and its options do not agree on {unclear}",
                hint="give the function beta, and every parameter of it that has a default an Option of its name",
            )

    @cached_property
    def parameters(self) -> dict[str, float]:
        """Its own parameters and their defaults (what only a batch can give, ``kl``, is not among them)."""
        given = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in given if p.default is not p.empty}

    @cached_property
    def needs_kl(self) -> bool:
        """Whether it measures pairs against the policy's distance from the reference, read on other prompts."""
        return "kl" in inspect.signature(self.function).parameters


def margin(loss: Loss, pairs: PairLogps, beta: float) -> Tensor:
    """Reward margin of each pair, unitless, [n]: β times what the loss compares, without its own offsets.

    That is β·delta, as TRL reports it (``rewards/margins``), and for the losses
    without a reference β·gap_mean, as TRL's CPO and ORPO trainers do. For losses of
    log-ratios per token it is β·delta_mean, which is what these losses see; TRL reports
    the summed β·delta there, which grows with the answers' length.
    """
    if not loss.needs_reference:
        return beta * pairs.gap_mean
    return beta * (pairs.delta_mean if loss.per_token else pairs.delta)
