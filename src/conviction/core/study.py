"""What a study found: one arm an intervention, and how each was judged."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from conviction.core.depth import Judgement
from conviction.core.forecast import ForecastScore

__all__ = ["Applying", "Arm", "Failure", "Study"]

SCHEMA = 1


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Applying(_Part):
    """What it took to move the model; None: it was not measured.

    peak_mb  the most memory that the process held meanwhile; since it began, where the system cannot tell
    """

    seconds: float | None
    peak_mb: int | None
    trip: str | None


class Failure(_Part):
    """Why an arm has no result."""

    kind: str
    message: str
    hint: str = ""


class Arm(_Part):
    """One intervention in a study.

    folder           its run folder, relative to the study's
    made_in          the folder that it was applied in, if by another run; None: its own
    tokens_more      tokens that a question costs more at run time, mean over the test questions
    expected         the frozen forecast's verdict, and ``score`` how it fared; None: it is not one that is forecast
    notes            what could not be measured, and why
    failure          why there is no judgement; ``left_out``: it was not tried, for want of time
    """

    name: str
    folder: str
    made_in: str | None = None
    changes: str
    settings: dict[str, Any]
    applying: Applying | None = None
    tokens_more: float | None = None
    judgement: Judgement | None = None
    expected: str | None = None
    score: ForecastScore | None = None
    notes: tuple[str, ...] = ()
    failure: Failure | None = None
    left_out: str | None = None


class Study(_Part):
    """All arms, in the order they were run."""

    schema_version: int = SCHEMA
    model: str
    topic: str
    target: str
    other: str
    verdict: str
    """Of the probe, in words, before anything was done."""
    arms: tuple[Arm, ...]
    provenance: dict[str, Any]
