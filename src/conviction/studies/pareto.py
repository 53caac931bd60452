"""How much an arm moved at which price: the answers that the model kept, and which arms no other arm beats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from conviction.probing.depth_records import Measurements
from conviction.probing.metrics.locality import FACT_ROLES
from conviction.probing.paired import pairs
from conviction.studies.records import Arm, Kept


def kept_answers(before: Measurements, after: Measurements) -> Kept | None:
    """Of the answers that the untouched model has right, those that the changed one still has.

    Asked are what either side holds, in its name, and facts: the answer is right where its gap is above 0.
    None where the untouched model has none of them right.
    """
    asked = pairs(before, after, *before.names("pluralism:"), *FACT_ROLES)
    had = [new for old, new in asked if old > 0]
    return Kept(kept=sum(new > 0 for new in had), of=len(had)) if had else None


class Position(NamedTuple):
    """Of an arm in the picture: how far it moved the model (nats per token), which share of the answers it kept, and
    tokens that it costs with every question.
    """

    shift: float
    kept: float
    tokens: float


def position(arm: Arm) -> Position | None:
    """None for an arm of which one of these is not known."""
    change = arm.judgement.change if arm.judgement is not None else None
    if arm.judgement is None or change is None or change.value is None or arm.judgement.kept is None:
        return None
    return Position(change.value, arm.judgement.kept.share, arm.extra_tokens or 0.0)


def pareto_front(arms: Sequence[Arm]) -> set[str]:
    """Names of the arms that no other arm beats: none moves as far, keeps as much and costs as few tokens, and is
    better in one of these. Only arms whose shift was shown are among them.
    """
    places = {arm.name: place for arm in arms if _moved(arm) and (place := position(arm)) is not None}
    return {name for name, place in places.items() if not any(_beats(other, place) for other in places.values())}


def _moved(arm: Arm) -> bool:
    change = arm.judgement.change if arm.judgement is not None else None
    return change is not None and change.outcome == "yes"


def _beats(one: Position, other: Position) -> bool:
    as_good = one.shift >= other.shift and one.kept >= other.kept and one.tokens <= other.tokens
    return as_good and one != other
