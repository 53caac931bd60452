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
    """A zone and why: ``violations`` are the limits that are passed, ``warnings`` the early signs of a collapse.

    ``warned_by`` names the sensors of the warnings, in the same order.
    """

    zone: Zone
    violations: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    warned_by: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class WarningSummary:
    """What one sensor warned of over a run. steps: how many; first_text, last_text: value and limit, in words."""

    sensor: str
    steps: int
    first_step: int
    last_step: int
    first_text: str
    last_text: str

    @property
    def text(self) -> str:
        """In one line."""
        if self.steps == 1:
            return f"step {self.first_step}: {self.first_text}"
        last = "" if self.first_text == self.last_text else f"; at the last {self.last_text}"
        return f"{self.steps} steps, from {self.first_step} to {self.last_step}: at the first {self.first_text}{last}"


def summarize_warnings(steps: Iterable[Mapping[str, Any]]) -> list[WarningSummary]:
    """One summary a sensor, in the order in which they first warned; steps as ``steps.jsonl`` has them.

    A step of an earlier version, which did not name its sensors, is left out.
    """
    summaries: dict[str, WarningSummary] = {}
    for record in steps:
        step, guard = record["step"], record.get("guard") or {}
        for sensor, text in zip(guard.get("warned_by", ()), guard.get("warnings", ()), strict=False):
            first = summaries.get(sensor)
            summaries[sensor] = WarningSummary(
                sensor=sensor,
                steps=1 if first is None else first.steps + 1,
                first_step=step if first is None else first.first_step,
                last_step=step,
                first_text=text if first is None else first.first_text,
                last_text=text,
            )
    return list(summaries.values())


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
    limits = _findings(run, stops=True, begins_random=begins_random)
    violations = tuple(limits.values()) if finite else (no_number,)
    signs = _findings(run, stops=False, begins_random=begins_random)
    warnings, warned_by = tuple(signs.values()), tuple(signs)
    stops = violations + warnings if guard.mode == "strict" else violations
    if stops and (not guard.idle or not finite):
        return GuardVerdict("stop", stops, warnings, warned_by)
    return GuardVerdict("warning" if violations or warnings else "healthy", violations, warnings, warned_by)


def sampling_is_due(step: int, guard: Guard, last: GuardVerdict) -> bool:
    """Whether greedy samples are to be written after this step (counted from 1); an idle guard does not hurry."""
    calm = last.zone == "healthy" or guard.idle
    interval = guard.sample_every if calm else max(1, guard.sample_every // 3)
    return step % interval == 0


def limit_shares(history: Sequence[StepReading], guard: Guard, total_steps: int) -> dict[str, float]:
    """Sensor → the part of its limit that the last reading uses, of those limits that would stop the run."""
    run, shares = Trace(history, guard, total_steps), dict[str, float]()
    for sensor in SENSORS.values():
        compared = sensor.compared(run) if sensor.stops else None
        if compared is not None and isinstance(sensor.judge, Threshold):
            share = sensor.judge.share(*compared)
            if share is not None:
                shares[sensor.name] = share
    return shares


def sample_violations(readings: Mapping[str, float], guard: Guard) -> list[str]:
    """The limits of samples that are passed, in words; readings as ``drift.read_samples`` gives them."""
    run = Trace([StepReading(step=0, loss=0.0, grad_norm=0.0, readings=readings)], guard, 0)
    of_samples = (sensor for sensor in SENSORS.values() if sensor.read_samples and sensor.stops)
    return [text for _, text in _ask(of_samples, run)]


def _findings(run: Trace, *, stops: bool, begins_random: bool) -> dict[str, str]:
    """Sensor → what it finds wrong, in words."""
    asked = (s for s in SENSORS.values() if s.stops is stops and not (begins_random and s.needs_health))
    return dict(_ask(asked, run))


def _ask(sensors: Iterable[Sensor], run: Trace) -> Iterator[tuple[str, str]]:
    for sensor in sensors:
        text = sensor.finding(run)
        if text is not None:
            yield sensor.name, text


def _is_finite(now: StepReading) -> bool:
    numbers = (now.loss, now.grad_norm, now.margin, now.chosen_drop, *now.readings.values())
    return all(number is None or math.isfinite(number) for number in numbers)
