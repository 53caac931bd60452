"""When training must stop: limits, readings, and the judgement of one by the other. Pure; no torch here.

A limit says how far a model may move from where it began before it counts as
breaking. None of them is a theorem: ``docs/guard.md`` shows the runs that each
was calibrated on. What is read, and the limits, are those of ``SENSORS``, one file
each. Those that only warn are the signs that a practitioner saw before a collapse.
Alone they prove nothing (a flip at β = 0.3 passes a margin of 5 in good health), so
by default they only make the guard look more often.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from conviction.core.options import fill_fields, flat_fields, setting
from conviction.training.sensors import SENSORS, Sensor, StepReading, Threshold, Trace, sensor_limits

Zone = Literal["healthy", "warning", "stop"]


@flat_fields
@dataclass(frozen=True, kw_only=True)
class Guard:
    """Limits of a healthy run. Differences are from the model as it was before the first step."""

    mode: Literal["strict", "default", "off", "none"] = setting(
        "default",
        "strict: the early signs stop a run as well; off: only what is not a number stops it; "
        "none: nor is anything else read",
    )
    limits: Any = field(default_factory=sensor_limits)
    sample_every: int = setting(9, "steps (facts) between greedy samples; after a sign a third of it", at_least=1)
    sample_tokens: int = setting(32, "tokens of a greedy sample", at_least=8)

    if TYPE_CHECKING:  # its fields are those of an open table, too

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, **fields: Any) -> None:
        fill_fields(self, fields)

    @property
    def idle(self) -> bool:
        """Whether limits may be passed."""
        return self.mode in {"off", "none"}


@dataclass(frozen=True)
class GuardVerdict:
    """A zone and why: ``violations`` are the limits that are passed, ``warnings`` the early signs of a collapse."""

    zone: Zone
    violations: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class GuardStop:
    """Why the guard stopped, and where.

    step           after which it stopped, restored_step: whose weights the model has (0: untouched); None: of an
                   intervention without steps
    flip_margin    the margin that flips would have taken, in words
    """

    reasons: tuple[str, ...]
    step: int | None = None
    restored_step: int | None = None
    flip_margin: str = ""

    @property
    def text(self) -> str:
        """In one line."""
        reasons = "; ".join(self.reasons)
        return reasons if self.step is None else f"step {self.step}: {reasons}"


def judge(
    history: Sequence[StepReading], guard: Guard, total_steps: int, *, begins_random: bool = False
) -> GuardVerdict:
    """Judge the last reading in the light of those before it. ``begins_random``: there is no health to lose."""
    run = Trace(history, guard, total_steps)
    finite = _is_finite(run.now)
    no_number = f"the loss or gradient is not a number (loss {run.now.loss}, gradient norm {run.now.grad_norm})"
    violations = _findings(run, stops=True, begins_random=begins_random) if finite else (no_number,)
    warnings = _findings(run, stops=False, begins_random=begins_random)
    stops = violations + warnings if guard.mode == "strict" else violations
    if stops and (not guard.idle or not finite):
        return GuardVerdict("stop", stops, warnings)
    return GuardVerdict("warning" if violations or warnings else "healthy", violations, warnings)


def sampling_is_due(step: int, guard: Guard, last: GuardVerdict) -> bool:
    """Whether greedy samples are to be written after this step (counted from 1); an idle guard does not hurry."""
    calm = last.zone == "healthy" or guard.idle
    interval = guard.sample_every if calm else max(1, guard.sample_every // 3)
    return step % interval == 0


def limit_shares(history: Sequence[StepReading], guard: Guard, total_steps: int) -> dict[str, float]:
    """Sensor → the part of its upper limit that the last reading reaches, of those limits that would stop the run."""
    run = Trace(history, guard, total_steps)
    upper = [s for s in SENSORS.values() if s.stops and isinstance(s.judge, Threshold) and not s.judge.floor]
    compared = {sensor.name: sensor.compared(run) for sensor in upper}
    return {name: pair[0] / pair[1] for name, pair in compared.items() if pair is not None and pair[1]}


def sample_violations(readings: Mapping[str, float], guard: Guard) -> list[str]:
    """The limits of samples that are passed, in words; readings as ``drift.read_samples`` gives them."""
    run = Trace([StepReading(step=0, loss=0.0, grad_norm=0.0, readings=readings)], guard, 0)
    return list(_ask((sensor for sensor in SENSORS.values() if sensor.read_samples and sensor.stops), run))


def _findings(run: Trace, *, stops: bool, begins_random: bool) -> tuple[str, ...]:
    asked = (s for s in SENSORS.values() if s.stops is stops and not (begins_random and s.needs_health))
    return tuple(_ask(asked, run))


def _ask(sensors: Iterable[Sensor], run: Trace) -> Iterator[str]:
    for sensor in sensors:
        text = sensor.finding(run)
        if text is not None:
            yield text


def _is_finite(now: StepReading) -> bool:
    numbers = (now.loss, now.grad_norm, now.margin, now.chosen_drop, *now.readings.values())
    return all(number is None or math.isfinite(number) for number in numbers)
