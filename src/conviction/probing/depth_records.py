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

SCHEMA = 4

PropertyOutcome = Literal["yes", "no", "unclear", "not measured", "not readable"]
Readability = Literal["readable", "not readable", "no control"]


class Measurement(Frozen):
    """One number. samples: ids of the rows it was computed from."""

    metric: str
    item: str
    value: float
    samples: tuple[str, ...] = ()


class ControlResult(Frozen):
    """What the positive control of a metric did in the untouched model: can the metric be read on it?

    metric       that it is the control of, maybe with ``:part``
    outcome      'no control': it is not shown to discriminate; ``text`` says why there is no control
    form         the form of question whose control is best, which is the one that was kept; None: there is one alone
    value        what moved, in ``unit``, with its 95 % interval; positive as it should be
    p_value      exact, of ``value``, times the number of forms that were tried
    measured_by  the metrics of the measurements that it was computed from
    """

    metric: str
    outcome: Readability
    form: str | None = None
    value: Finite = None
    low: Finite = None
    high: Finite = None
    unit: str
    n: int
    p_value: float | None = None
    text: str
    measured_by: tuple[str, ...]


class Measurements(Frozen):
    """All measurements of one model, with their evidence.

    controls  what the metrics' positive controls did; of the untouched model alone
    """

    schema_version: int = SCHEMA
    model: str
    topic: str
    target: str
    measurements: tuple[Measurement, ...]
    provenance: dict[str, Any]
    controls: tuple[ControlResult, ...] = ()
    evidence: tuple[Sample, ...] = Field(default=(), exclude=True, repr=False)

    def of(self, metric: str) -> dict[str, float]:
        """Item → value."""
        return {m.item: m.value for m in self.measurements if m.metric == metric}

    def control(self, metric: str) -> ControlResult | None:
        """That of a metric or its part; that of the whole metric where the part has none of its own."""
        own = {result.metric: result for result in self.controls}
        return own.get(metric, own.get(metric.partition(":")[0]))

    def names(self, start: str) -> list[str]:
        """Metrics that begin so, in the order measured."""
        return list(dict.fromkeys(m.metric for m in self.measurements if m.metric.startswith(start)))


class Property(Frozen):
    """One property of a change.

    metric       the name of the metric that concluded it, maybe ``:part``
    outcome      whether it is there (for consistency and damage: whether what was there before was kept);
                 'not readable': the metric's positive control shows nothing on this model, and ``value`` says nothing
    value        in ``unit``, with its 95 % interval; None: there is none
    p_value      before, ``p_holm`` after Holm's correction over all tests of the judgement, and over a study's arms
    seeds        of the training that it was computed over
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
    seeds: int = 1
    p_value: float | None = None
    p_holm: float | None = None
    sd: Finite = None
    useful: Finite = None
    text: str
    measured_by: tuple[str, ...]
