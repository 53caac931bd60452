"""What a sensor of the guard is: how it reads a run, and when a reading is too much. No torch here."""

from __future__ import annotations

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
    from conviction.training.drift import DriftMetrics
    from conviction.training.guard import Guard

__all__ = ["Samples", "Sensor", "StepReading", "Trace"]


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
class Samples:
    """Greedy answers to the same prompts, of the untouched model (``before``) and of the model now."""

    prompts: Sequence[tuple[Message, ...]]
    before: Sequence[Generation]
    now: Sequence[Generation]

    @cached_property
    def health(self) -> tuple[Degeneration, Degeneration]:
        """Measures of degeneration of both."""
        return degeneration(self.before), degeneration(self.now)


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
class Sensor:
    """An entry of ``SENSORS``: a file that ends in ``SENSOR = Sensor(…)``, and its line in the table.

    name          of its reading, as ``steps.jsonl`` has it
    judge         what is wrong, in words, with the limit; None: nothing is. A sensor that reads is asked only where
                  its reading was taken (``run.now.readings[name]``)
    stops         whether that stops a run (a violation), or makes the guard look more often (a warning)
    limits        options of the guard that it brings
    read_step, read_drift, read_samples
                  how it reads: from the numbers of a step, from the drift metrics of the untouched model and of the
                  model now, or from greedy samples, when they are due; at most one of them. None gives no reading:
                  it does not apply. A sensor without any judges the numbers that the step's record holds already
    needs_health  not judged where a model begins random: it has no health to lose
    """

    name: str
    judge: Callable[[Trace], str | None]
    stops: bool
    limits: tuple[Option, ...] = ()
    read_step: Callable[[StepReading], float | None] | None = None
    read_drift: Callable[[DriftMetrics, DriftMetrics], float | None] | None = None
    read_samples: Callable[[Samples], float | None] | None = None
    needs_health: bool = False

    @property
    def reads(self) -> bool:
        """Whether it takes a reading of its own."""
        return any(read is not None for read in (self.read_step, self.read_drift, self.read_samples))

    def __post_init__(self) -> None:
        if sum(read is not None for read in (self.read_step, self.read_drift, self.read_samples)) > 1:
            raise InputError(
                f"sensor '{self.name}' reads in two ways",
                hint="give one of read_step, read_drift and read_samples; two readings are two sensors",
            )
