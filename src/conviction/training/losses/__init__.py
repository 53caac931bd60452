"""Losses over pairs, one file each: pure functions of summed log-probs and token counts.

Each takes a ``PairLogps`` of n pairs and returns one loss a pair, a tensor [n]
with gradients; the caller averages. ``beta`` is each paper's own, so its unit
and its useful range differ from loss to loss: per-token losses see differences
some hundred times smaller than summed ones. Where TRL 1.16 has the same loss,
tests/test_losses.py holds this package to TRL's number.

A new loss is one file beside these, which ends in ``LOSS = Loss(…)``, and one line in ``LOSSES``.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import Any

from conviction.core.options import Option, settings_class
from conviction.errors import InputError, nearest
from conviction.training.losses.loss import Loss, margin
from conviction.training.losses.pairs import BETA, PairLogps, sft_term

__all__ = ["LOSSES", "Loss", "PairLogps", "find_loss", "loss_parameters", "margin", "parameters", "sft_term"]

LOSSES: dict[str, Loss] = {
    name: import_module(f"{__name__}.{name}").LOSS
    for name in (
        "dpo",
        "hinge",
        "ipo",
        "robust",
        "dpo_norm",
        "dpop",
        "hypo",
        "simpo",
        "orpo",
        "kto",
    )
}


def find_loss(name: str) -> Loss:
    """The loss of this name; InputError names the nearest known one."""
    if name not in LOSSES:
        raise InputError(f"unknown loss '{name}'", hint=f"{nearest(name, LOSSES)}use one of: {', '.join(LOSSES)}")
    return LOSSES[name]


def parameters(name: str) -> dict[str, float]:
    """A loss's own parameters and their defaults (what only a batch can give, KTO's kl, is not among them)."""
    return dict(find_loss(name).parameters)


def loss_parameters() -> Any:
    """Settings with the parameters of all losses; none: the loss's own default.

    Raises InputError where two losses mean different things by one name.
    """
    owners: dict[str, list[Loss]] = {}
    meanings: dict[str, Option] = {}
    for loss in LOSSES.values():
        for option in (BETA, *loss.options):
            if meanings.setdefault(option.name, option) != option:
                raise InputError(
                    f"losses '{owners[option.name][0].name}' and '{loss.name}' mean different things by {option.name}",
                    hint="give one of the two parameters another name, or let them share their Option",
                )
            owners.setdefault(option.name, []).append(loss)
    return settings_class("LossParameters", tuple(_optional(meanings[name], owners[name]) for name in meanings))()


def _optional(option: Option, owners: list[Loss]) -> Option:
    """A parameter as an option of all losses: it may be left out, and says whose it is."""
    whose = "" if len(owners) == len(LOSSES) else f" ({', '.join(loss.name for loss in owners)})"
    return replace(option, meaning=option.meaning + whose, type=option.type | None, default=None, sweepable=True)
