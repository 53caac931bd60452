"""What a search for settings tried, and what it chose."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from conviction.core.context import Budget
from conviction.core.record import Frozen
from conviction.core.wording import settings_in_words

SCHEMA = 2
STAGE = "tuning"  # its name in a run folder
MINUTES, SHARE = 10.0, 0.4  # of a search by default: in all, or of a budget
MARGIN = 0.8  # of every limit of the guard, that a healthy dose may use: the run on the whole split differs


def search_minutes(wanted: float | Literal["auto"], budget: Budget | None = None) -> float:
    """Minutes of searching. "auto": a share of the budget, or where there is none so many that a kit's arms need."""
    if wanted != "auto":
        return wanted
    return MINUTES if budget is None else SHARE * budget.seconds / 60


class Dose(Frozen):
    """A reading along a training run: after so many of its steps.

    shift_nats, low, high  nats per token towards the target on validation propositions, with the 95 % interval
    zone                   of the guard after that step; ``warnings``: why it is no better
    limits_used            sensor of the guard → the part of its limit that its latest reading uses
    damage_read            whether what it breaks was read as well
    """

    step: int
    shift_nats: float
    low: float
    high: float
    zone: Literal["healthy", "warning", "stop"]
    warnings: tuple[str, ...] = ()
    limits_used: dict[str, float] = Field(default_factory=dict)
    damage_read: bool = True

    @property
    def healthy(self) -> bool:
        """Whether it is known to break nothing: the guard has nothing to say, and no limit is near."""
        return self.damage_read and self.zone == "healthy" and max(self.limits_used.values(), default=0.0) <= MARGIN

    @property
    def why_not(self) -> str:
        """What is wrong with it, in words; '' for a healthy dose."""
        if self.healthy:
            return ""
        if not self.damage_read:
            return f"{self.shift_nats:+.2f} nats per token; what it breaks was not read, because others moved more"
        near = max(self.limits_used, key=lambda name: self.limits_used[name], default="")
        return "; ".join(self.warnings) or f"{near} uses {self.limits_used[near]:.0%} of its limit"


class Trial(Frozen):
    """Settings that were tried.

    options        fields of the intervention, over those of the plan
    forecast_nats  expected shift on validation propositions, up to a stop that is expected; None: no forecast
    forecast_stop  the step of that stop; None: none is expected
    doses          readings of a real run; none: these settings were not run, ``reason`` says why
    guard_stop     why the guard stopped that run; ``failure``: why there was none, or no more of it
    seconds        that it took in all; forecast_seconds: its share of those that forecasting all settings took
    reason         why these settings were not chosen, or why they were
    """

    options: dict[str, Any]
    forecast_nats: float | None = None
    forecast_stop: int | None = None
    doses: tuple[Dose, ...] = ()
    steps: int | None = None
    guard_stop: str | None = None
    failure: str | None = None
    seconds: float = 0.0
    forecast_seconds: float = 0.0
    chosen: bool = False
    reason: str = ""

    @property
    def words(self) -> str:
        """The options, as ``-o`` takes them."""
        return settings_in_words(self.options)

    @property
    def made(self) -> bool:
        """Whether it was run, to whatever end."""
        return bool(self.doses) or self.guard_stop is not None or self.failure is not None

    @property
    def best(self) -> Dose | None:
        """The healthy dose with the largest shift."""
        healthy = [dose for dose in self.doses if dose.healthy]
        return max(healthy, key=lambda dose: dose.shift_nats, default=None)


class Tuning(Frozen):
    """A search for the settings of one intervention.

    fitted, asked  propositions that trials were trained on, and that they were read on: all of the train split
    options        what was chosen: fields of the intervention, over those of the plan
    summary        what came of it, in a sentence
    """

    schema_version: int = SCHEMA
    intervention: str
    fitted: int
    asked: int
    trials: tuple[Trial, ...]
    options: dict[str, Any]
    summary: str
    seconds: float
    complete: bool = True
