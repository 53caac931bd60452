"""What an intervention gives back: one type for all of them, and one file, ``outcome.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from conviction.core.options import flat
from conviction.core.protocols import LanguageModel
from conviction.data.training_data import TrainingData
from conviction.training.guard import GuardStop

__all__ = ["DataSource", "Outcome", "PlaceboKind", "TrainingSummary"]

SCHEMA = 2
PlaceboKind = Literal["pairs", "documents"]
"""Which data of another subject a placebo of an intervention is trained on."""


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

    model       the changed model; None where the outcome was read from a folder, whose ``model/`` holds it
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

    @property
    def changed(self) -> LanguageModel:
        """The changed model. Raises ValueError where the outcome was read from a folder."""
        if self.model is None:
            raise ValueError("the outcome was read from a folder: load the model from there")
        return self.model
