"""What a search for settings tried, and what it chose."""

from __future__ import annotations

from typing import Any, Literal

from conviction.core.record import Frozen
from conviction.core.wording import settings_in_words

SCHEMA = 1
STAGE = "tuning"  # its name in a run folder


class Dose(Frozen):
    """A reading along a training run: after so many of its steps.

    shift_nats, low, high  nats per token towards the target on validation propositions, with the 95 % interval
    zone                   of the guard after that step; ``warnings``: why it is no better
    """

    step: int
    shift_nats: float
    low: float
    high: float
    zone: Literal["healthy", "warning", "stop"]
    warnings: tuple[str, ...] = ()


class Trial(Frozen):
    """Settings that were tried.

    options        fields of the intervention, over those of the plan
    forecast_nats  expected shift on validation propositions, up to a stop that is expected; None: no forecast
    forecast_stop  the step of that stop; None: none is expected
    doses          readings of a real run; none: these settings were not run, ``reason`` says why
    guard_stop     why the guard stopped that run; ``failure``: why there was none
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
        healthy = [dose for dose in self.doses if dose.zone == "healthy"]
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
