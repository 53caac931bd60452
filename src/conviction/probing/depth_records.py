"""How deep a change goes: what was measured on a model, and what was concluded from two models' measurements.

A measurement is one number of one item (a proposition, an outcome of a causal
graph, a question) in one model; a property compares the measurements of two
models. What the properties of a change add up to is a judgement (``studies.records``).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from conviction.core.record import Finite, Frozen
from conviction.probing.records import Sample

SCHEMA = 2

PropertyOutcome = Literal["yes", "no", "unclear", "not measured"]


class Measurement(Frozen):
    """One number. samples: ids of the rows it was computed from."""

    metric: str
    item: str
    value: float
    samples: tuple[str, ...] = ()


class Measurements(Frozen):
    """All measurements of one model, with their evidence."""

    schema_version: int = SCHEMA
    model: str
    topic: str
    target: str
    measurements: tuple[Measurement, ...]
    provenance: dict[str, Any]
    evidence: tuple[Sample, ...] = Field(default=(), exclude=True, repr=False)

    def of(self, metric: str) -> dict[str, float]:
        """Item → value."""
        return {m.item: m.value for m in self.measurements if m.metric == metric}

    def names(self, start: str) -> list[str]:
        """Metrics that begin so, in the order measured."""
        return list(dict.fromkeys(m.metric for m in self.measurements if m.metric.startswith(start)))


class Property(Frozen):
    """One property of a change.

    metric       the name of the metric that concluded it, maybe ``:part``
    outcome      whether it is there (for consistency and damage: whether what was there before was kept)
    value        in ``unit``, with its 95 % interval; None: there is none
    p_value      before, ``p_holm`` after Holm's correction over all tests of the judgement, and over a study's arms
    sd, useful   of a change: the items' standard deviation, and the smallest mean that would be of use, in ``unit``
    measured_by  the metrics of the measurements that it was computed from
    """

    metric: str
    outcome: PropertyOutcome
    value: Finite
    low: Finite = None
    high: Finite = None
    unit: str
    n: int
    p_value: float | None = None
    p_holm: float | None = None
    sd: Finite = None
    useful: Finite = None
    text: str
    measured_by: tuple[str, ...]
