"""What a sensor of the guard is: how it reads a run, and when a reading is too much. No torch here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from conviction.core.options import Option
from conviction.core.protocols import Generation, Message
from conviction.errors import InputError
from conviction.probing.health import degeneration
from conviction.probing.records import Degeneration

if TYPE_CHECKING:
    from conviction.probing.metric import Measured, MetricContext
    from conviction.probing.paired import Comparison
    from conviction.probing.queries import ProbeQuery
    from conviction.training.guard import Guard

__all__ = ["DriftMetrics", "Samples", "Sensor", "StepReading", "Threshold", "TopicReading", "Trace"]


@dataclass(frozen=True, kw_only=True)
class StepReading:
    """What is known after one step.

    loss, grad_norm      of the step
    margin, chosen_drop  means over its pairs (β-scaled; nats per token); None: without meaning for this method
    readings             what the sensors read, by their names; what was not measured is missing
    """

    step: int
    loss: float
    grad_norm: float
    margin: float | None = None
    chosen_drop: float | None = None
    readings: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class DriftMetrics:
    """Where a model stands; NaN: not read.

    neutral   nats per token of neutral text
    entropy   nats, on held-out prompts; top_mass: probability of the ten likeliest tokens there
    kl        nats per token, KL(untouched model || this model) on neutral text
    """

    neutral: float
    entropy: float = math.nan
    top_mass: float = math.nan
    kl: float = math.nan


@dataclass(frozen=True)
class Samples:
    """Greedy answers to the same prompts, of the untouched model (``before``) and of the model now."""

    prompts: Sequence[tuple[Message, ...]]
    before: Sequence[Generation]
    now: Sequence[Generation]

    @cached_property
    def _health(self) -> tuple[Degeneration, Degeneration]:
        return degeneration(self.before), degeneration(self.now)

    def rise(self, measure: str) -> float:
        """By how much a measure of degeneration (a field of ``Degeneration``) has risen."""
        before, now = (float(getattr(health, measure)) for health in self._health)
        return now - before


@dataclass(frozen=True)
class Trace:
    """A run up to now, its limits, and how long it is to be."""

    history: Sequence[StepReading]
    guard: Guard
    total_steps: int

    @property
    def now(self) -> StepReading:
        """The last step."""
        return self.history[-1]


@dataclass(frozen=True, kw_only=True)
class TopicReading:
    """What is asked about a run's topic: queries and measurements of one of the judge's metrics, on the train split.

    queries, measure  as a ``Metric`` has them
    read              from the measurements of the untouched model and of the model now; None: it does not apply
    """

    queries: Callable[[MetricContext], Sequence[ProbeQuery]]
    measure: Callable[[MetricContext], Measured]
    read: Callable[[Comparison], float | None]


MIN_P = 1e-12  # a smaller p-value is taken for this


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A judgement that holds one number against one limit.

    limit         option of the guard that has the limit
    message       what is wrong beyond it: a format of ``value`` and ``limit``
    value         the number, None where there is none; left out: the sensor's own reading
    floor         the limit is the least that is allowed, in place of the most
    p_value       what is judged is a p-value: the share of its limit that is used goes by orders of magnitude
    where_edited  what the limit is multiplied by for answers that an edit is meant to change
    """

    limit: Option
    message: str
    value: Callable[[Trace], float | None] | None = None
    floor: bool = False
    p_value: bool = False
    where_edited: float = 1.0

    def finding(self, value: float, limit: float) -> str | None:
        """What is wrong, in words; None: nothing is."""
        beyond = value < limit if self.floor else value > limit
        return self.message.format(value=value, limit=limit) if beyond else None

    def share(self, value: float, limit: float) -> float | None:
        """The part of the limit that is used, 1 at the limit; None: of this one it has no meaning."""
        if self.p_value:
            return max(0.0, math.log(max(value, MIN_P)) / math.log(limit)) if MIN_P < limit < 1 else None
        return value / limit if limit and not self.floor else None


@dataclass(frozen=True, kw_only=True)
class Sensor:
    """An entry of ``SENSORS``: a file that ends in ``SENSOR = Sensor(…)``, and its line in the table.

    name          of its reading, as ``steps.jsonl`` has it
    judge         a threshold, or a function that says in words what is wrong; None: nothing is. A sensor that reads is
                  asked only where its reading was taken (``run.now.readings[name]``)
    stops         whether that stops a run (a violation), or makes the guard look more often (a warning)
    limits        options of the guard that it brings besides the threshold's
    read_step, read_drift, read_samples, read_topic
                  how it reads: from the numbers of a step, from the drift metrics of the untouched model and of the
                  model now, from greedy samples or from the judge's measurements on the run's topic, when they are
                  due; at most one of them. None gives no reading: it does not apply. A sensor without any judges the
                  numbers that the step's record holds already
    questions     what it wants the greedy samples to answer, besides everyday questions
    simulated     whether a forecast simulates what it reads; a stop by any other is not predicted
    needs_health  not judged where a model begins random: it has no health to lose
    show          its reading in words, in the live line of a step or in a report on answers; None: it is not shown
    curve         title of its readings in the chart of a run; '': they are not drawn
    """

    name: str
    judge: Threshold | Callable[[Trace], str | None]
    stops: bool
    limits: tuple[Option, ...] = ()
    read_step: Callable[[StepReading], float | None] | None = None
    read_drift: Callable[[DriftMetrics, DriftMetrics], float | None] | None = None
    read_samples: Callable[[Samples], float | None] | None = None
    read_topic: TopicReading | None = None
    questions: tuple[str, ...] = ()
    simulated: bool = False
    needs_health: bool = False
    show: Callable[[float], str] | None = None
    curve: str = ""

    def __post_init__(self) -> None:
        if self._ways > 1:
            raise InputError(
                f"sensor '{self.name}' reads in two ways",
                hint="give one of read_step, read_drift, read_samples and read_topic; two readings are two sensors",
            )

    @property
    def _ways(self) -> int:
        return sum(read is not None for read in (self.read_step, self.read_drift, self.read_samples, self.read_topic))

    @property
    def options(self) -> tuple[Option, ...]:
        """All options of the guard that it brings."""
        return (self.judge.limit, *self.limits) if isinstance(self.judge, Threshold) else self.limits

    def compared(self, run: Trace) -> tuple[float, float] | None:
        """The number that its threshold judges, and the limit; None: it has no threshold, or there is no number yet."""
        if not isinstance(self.judge, Threshold) or not self._was_read(run):
            return None
        value = run.now.readings[self.name] if self.judge.value is None else self.judge.value(run)
        return None if value is None else (value, getattr(run.guard, self.judge.limit.name))

    def finding(self, run: Trace) -> str | None:
        """What is wrong, in words; None: nothing is, or its reading was not taken."""
        if not isinstance(self.judge, Threshold):
            return self.judge(run) if self._was_read(run) else None
        compared = self.compared(run)
        return self.judge.finding(*compared) if compared is not None else None

    def _was_read(self, run: Trace) -> bool:
        return not self._ways or self.name in run.now.readings
