"""What goes through every command besides models and data: who is told of it, where it is written, its limits."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conviction.core.protocols import LanguageModel, Progress
from conviction.core.run import Run
from conviction.errors import BudgetSpent

if TYPE_CHECKING:
    from conviction.studies.records import Study
    from conviction.training.guard import Guard


def main_process() -> bool:
    """Whether this is the only process, or the first under ``accelerate launch``."""
    return int(os.environ.get("RANK", "0")) == 0


def several_processes() -> bool:
    """Whether ``accelerate launch`` started more than one."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@dataclass(frozen=True)
class Callbacks:
    """Who is told what happens.

    log       one line of what is going on
    progress  given the name of a stage, returns a (done, total) callback, or None
    on_step   every training step's record, and the number of steps
    on_study  a study as far as it has come, whenever something was added to its folder
    on_model  after a step that the guard let pass: its number, the number of steps, and the model, which the next
              step changes; of a run in one process alone. None: nobody asks
    """

    log: Callable[[str], None] = lambda _: None
    progress: Callable[[str], Progress | None] = lambda _: None
    on_step: Callable[[Mapping[str, Any], int], None] = lambda _record, _total: None
    on_study: Callable[[Study], None] = lambda _: None
    on_model: Callable[[int, int, LanguageModel], None] | None = None


@dataclass(frozen=True)
class Budget:
    """Seconds after which no step of training and nothing new is begun, counted from when this object was made."""

    seconds: float
    started: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds that are left; below 0: since it was spent."""
        return self.seconds - (time.monotonic() - self.started)

    @property
    def spent(self) -> bool:
        """Whether the time is over."""
        return self.left <= 0


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """The circumstances of one piece of work.

    guard    the limits of a healthy model; None: the default ones
    run      the run folder that results are written into; None: nothing is written
    tracker  an experiment tracker by accelerate's name: tensorboard, wandb, mlflow, trackio
    budget   after which no further arm of a study, and no further step of training, is begun; None: all are
    doses    parts of a training run after each of which the guard reads the topic, besides its own intervals
    """

    guard: Guard | None = None
    callbacks: Callbacks = field(default_factory=Callbacks)
    run: Run | None = None
    tracker: str | None = None
    budget: Budget | None = None
    doses: int = 0

    def into(self, run: Run | None) -> RunContext:
        """The same with another run folder."""
        return replace(self, run=run)

    @property
    def model_path(self) -> Path | None:
        """Where this process writes the changed model; None: nowhere, or it is not the first of several."""
        return self.run.model_path if self.run is not None and main_process() else None

    def log(self, line: str) -> None:
        """Tell one line of what is going on."""
        self.callbacks.log(line)

    def progress(self, stage: str) -> Progress:
        """A (done, total) callback for a stage."""
        return self.callbacks.progress(stage) or (lambda _done, _total: None)

    def on_step(self, record: Mapping[str, Any], total: int) -> None:
        """Tell a training step's record, of ``total`` steps."""
        self.callbacks.on_step(record, total)

    def check_budget(self) -> None:
        """Raise BudgetSpent when the time is over."""
        if self.budget is not None and self.budget.spent:
            raise BudgetSpent(
                f"the budget of {self.budget.seconds / 60:g} minutes was spent",
                hint="give a longer --budget, or continue with the same command and --run",
            )
