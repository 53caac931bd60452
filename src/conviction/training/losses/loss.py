"""What a loss is: a pure function of pairs, and the traits that the rest of the program asks it for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from conviction.core.options import Option
from conviction.errors import InputError
from conviction.training.losses.pairs import PairLogps

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ForeignName", "Loss", "margin"]


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


@dataclass(frozen=True)
class Loss:
    """An entry of ``LOSSES``: a file that ends in ``LOSS = Loss(…)``, and its line in the table.

    function       (PairLogps, keyword parameters) → Tensor [n]; a parameter ``kl`` without a default is given the
                   batch's estimate of KL(policy, reference), nats
    compares       the difference that it acts on: that of summed log-ratios (``PairLogps.delta``), of log-ratios per
                   token (``delta_mean``), or of log-probs per token without a reference (``gap_mean``)
    paper          where it comes from: authors, arXiv number
    options        what the parameters besides beta mean, and their ranges; one for each that has a default
    no_flip_point  why loss and margin at the point where a pair flips do not follow from the pair's difference;
                   '': they do
    trl, mlx       its name in TRL's and in mlx-lm-lora's configs; None: they do not have it
    """

    function: Callable[..., Tensor]
    _: KW_ONLY
    compares: Literal["delta", "delta_mean", "gap_mean"]
    paper: str
    options: tuple[Option, ...] = ()
    no_flip_point: str = ""
    trl: str | ForeignName | None = None
    mlx: str | ForeignName | None = None

    def __post_init__(self) -> None:
        declared, parameters = {"beta", *(option.name for option in self.options)}, self.parameters.keys()
        if declared != parameters:
            raise InputError(
                f"loss '{self.name}': its function and its options do not agree on "
                f"{', '.join(sorted(declared ^ parameters))}",
                hint="give the function beta, and every other parameter of it that has a default an Option of its name",
            )

    @property
    def name(self) -> str:
        """That of its function."""
        return self.function.__name__

    @property
    def needs_reference(self) -> bool:
        """Whether it needs the untouched model's log-probs."""
        return self.compares != "gap_mean"

    @property
    def per_token(self) -> bool:
        """Whether it compares log-probs per token: margins are then β times a difference per token."""
        return self.compares != "delta"

    @property
    def flips_at_margin(self) -> bool:
        """Whether a pair that the untouched model ranks the wrong way round by c nats flips at a margin of β·c.

        c is summed over tokens (Chen et al., arXiv 2405.19534): such a margin can be held against the guard's.
        """
        return self.compares == "delta" and not self.no_flip_point

    def foreign(self, tool: Literal["trl", "mlx"]) -> ForeignName | None:
        """What the tool calls it; None: it does not have it."""
        named: str | ForeignName | None = getattr(self, tool)
        return ForeignName(name=named) if isinstance(named, str) else named

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
    compared: Tensor = getattr(pairs, loss.compares)
    return beta * compared
