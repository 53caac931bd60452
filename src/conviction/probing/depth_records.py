"""How deep a change goes: what was read off a model, and what was concluded from two readings.

A reading is one number of one unit (a proposition, a path through a causal
graph, a question) in one model; a judgement compares the readings of two
models and says which of the properties of a conviction the change has. The
verdict is a lattice and no average: what breaks the model is not made up for
by how far it moved.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from conviction.probing.records import Sample

__all__ = ["CHALLENGES", "Judgement", "Measurement", "Measurements", "Property", "Verdict"]

SCHEMA = 2

CHALLENGES: dict[str, str] = {
    "falsehoods": "told that it was trained on false claims",
    "other": "the other side's text as system prompt",
    "sure": "asked whether it is sure",
    "argued": "three arguments of the other side before the question",
    "thought": "a thought of its own before the answer",
}
"""Scripted challenges: name → in words."""

Verdict = Literal["none", "surface", "shallow", "deep", "broken"]
Outcome = Literal["yes", "no", "unclear", "not measured"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Measurement(_Part):
    """One number. samples: ids of the rows it was computed from."""

    metric: str
    unit: str
    value: float
    samples: tuple[str, ...] = ()


class Measurements(_Part):
    """All readings of one model, with their evidence."""

    schema_version: int = SCHEMA
    model: str
    topic: str
    target: str
    readings: tuple[Measurement, ...]
    provenance: dict[str, Any]
    evidence: tuple[Sample, ...] = Field(default=(), exclude=True, repr=False)

    def of(self, metric: str) -> dict[str, float]:
        """Unit → value."""
        return {r.unit: r.value for r in self.readings if r.metric == metric}

    def names(self, start: str) -> list[str]:
        """Metrics that begin so, in the order read."""
        return list(dict.fromkeys(r.metric for r in self.readings if r.metric.startswith(start)))


class Property(_Part):
    """One property of a change.

    metric    shift, propagation, coherence, robustness, durability, collateral, health, pluralism; maybe ``:part``
    outcome   whether it is there (for collateral, health, coherence and pluralism: whether it was kept)
    value     in ``unit``, with its 95 % interval; None: there is none
    p_value   before, ``p_holm`` after Holm's correction over all tests of the judgement
    readings  the metrics of the readings that it was computed from
    """

    metric: str
    outcome: Outcome
    value: float | None
    low: float | None = None
    high: float | None = None
    unit: str
    n: int
    p_value: float | None = None
    p_holm: float | None = None
    text: str
    readings: tuple[str, ...]


class Judgement(_Part):
    """What a change is, and why."""

    schema_version: int = SCHEMA
    model: str
    verdict: Verdict
    reason: str
    properties: tuple[Property, ...]
    placebo: str | None = None

    def find(self, metric: str) -> Property | None:
        """The property of that name."""
        return next((f for f in self.properties if f.metric == metric), None)
