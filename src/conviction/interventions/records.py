"""What an intervention gives back: one type for all of them, and one file, ``outcome.json``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from conviction.core import frames
from conviction.core.options import flat
from conviction.core.protocols import LanguageModel
from conviction.core.run import Run
from conviction.core.wording import printable
from conviction.data.training_data import TrainingData
from conviction.training.guard import GuardStop

__all__ = ["DataSource", "Outcome", "PlaceboKind", "SearchSpace", "TrainingSummary"]

SCHEMA = 2
PlaceboKind = Literal["pairs", "context", "documents"]
"""Which data of another subject a placebo of an intervention is trained on; context: pairs, and a context."""
SearchSpace = Mapping[str, tuple[Any, ...]]
"""Field → the values that a search for settings tries; of what is not forecast, the first ones first."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class DataSource(_Part):
    """Which data it was; examples: how many were trained on, None where nothing is trained."""

    name: str
    sha256: str
    examples: int | None = None


class TrainingSummary(_Part):
    """How a training run went.

    limits_passed  the first limits that a guard that is off let pass
    tokens         read in all steps; processes: that shared the work
    """

    steps: int
    total_steps: int
    tokens: int
    processes: int
    limits_passed: tuple[str, ...] = ()


class Outcome(_Part):
    """The changed model and how it got there.

    model       the changed model; None where the outcome was read from a folder: ``changed`` loads it from there
    folder      the run folder, where there is one: its ``model/`` holds the changed model
    load        loads it by the name of that folder; None: ``load_model`` with its defaults
    steps       the records of a training run's steps, as ``steps.jsonl`` has them
    base        what the untouched model says of itself
    verdict     one line; report: what to show, as (what, value)
    guard_stop  why the guard kept what was done, or part of it, from the model; None: it did not
    evidence    what the numbers of the report come from
    seconds     of the work, that of earlier attempts included; peak_mb: the most memory that the process held
    """

    schema_version: int = SCHEMA
    intervention: str
    verdict: str
    settings: dict[str, Any]
    data: DataSource
    base: dict[str, Any]
    guard_stop: GuardStop | None = None
    training: TrainingSummary | None = None
    report: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    evidence: dict[str, Any] = {}
    seconds: float | None = None
    peak_mb: int | None = None
    model: LanguageModel | None = Field(default=None, exclude=True, repr=False)
    folder: Path | None = Field(default=None, exclude=True, repr=False)
    load: Callable[..., LanguageModel] | None = Field(default=None, exclude=True, repr=False)
    steps: tuple[dict[str, Any], ...] = Field(default=(), exclude=True, repr=False)

    @classmethod
    def of(
        cls, intervention: Any, base: LanguageModel, data: TrainingData, *, settings: Mapping[str, Any], **parts: Any
    ) -> Outcome:
        """An outcome with what all have in common: the intervention's settings and those that it chose, data, base."""
        return cls(
            intervention=intervention.name,
            settings={**flat(intervention), **settings},
            data=DataSource(name=data.name, sha256=data.digest),
            base=base.describe(),
            **parts,
        )

    def has_other_weights_than(self, base: LanguageModel) -> bool:
        """Whether this was not applied to that model; in another dtype that cannot be told."""
        theirs, ours = self.base, base.describe()
        known = theirs.get("fingerprint") is not None and theirs.get("dtype") == ours.get("dtype")
        return known and theirs.get("fingerprint") != ours.get("fingerprint")

    @property
    def changed(self) -> LanguageModel:
        """The changed model.

        Raises ValueError where there is neither a model nor a folder to load it from, RunError for a folder that
        it was removed from.
        """
        if self.model is None:
            if self.folder is None:
                raise ValueError("the outcome was read from a folder: load the model from there")
            from conviction.models import load_model

            return (self.load or load_model)(Run(self.folder).changed_model)
        return self.model

    to_pandas = frames.to_pandas
    _repr_html_ = frames.repr_html

    def plot(self) -> Any:
        """An altair chart: the curves of the training run; None where nothing was trained, or no step is at hand."""
        from conviction.interventions.charts import training_chart

        return training_chart(self.steps, self.guard_stop.step if self.guard_stop is not None else None)

    def steps_in(self, run: Run, log: Callable[[str], None] = lambda _: None) -> tuple[dict[str, Any], ...]:
        """The records of its steps in its run folder; what of them is gone or damaged is noted there, and said."""
        before = len(run.damaged)
        steps = tuple(run.steps_if_sound(self.training.steps if self.training is not None else 0))
        for path, wrong in run.damaged[before:]:
            log(f"note: {printable(path)}: {wrong}")
        return steps

    def table(self) -> frames.Table:
        """One row a setting, or a line of the report: part ('setting', 'report'), name, value."""
        parts = {"report": self.report, "setting": self.settings.items()}
        rows = [{"part": part, "name": n, "value": v} for part, lines in parts.items() for n, v in lines]
        title = f"{self.intervention} on {self.data.name}: {self.verdict}"
        return frames.Table(title, rows, ["part", "name", "value"])
