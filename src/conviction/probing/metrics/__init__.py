"""Metrics of how deep a change goes, one file each.

``METRICS`` maps a name to where its ``Metric`` lives, in the order of the study's
table; a metric is one file here, whose docstring defines what it measures, and its name in that order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import import_module

from conviction.errors import InputError
from conviction.probing.depth_records import Property
from conviction.probing.metric import Kind, Metric

METRICS: dict[str, str] = {
    name: f"{__name__}.{name}:METRIC"
    for name in (
        *("shift", "propagation", "decisions", "robustness", "durability"),
        *("coherence", "locality", "health", "pluralism"),
    )
}


def load_metrics(kinds: Iterable[Kind] | None = None) -> list[Metric]:
    """All metrics in the table's order, or those of some kinds. Raises InputError for an entry that is no metric."""
    metrics = [_load(name, where) for name, where in METRICS.items()]
    wanted = None if kinds is None else set(kinds)
    return [metric for metric in metrics if wanted is None or metric.kind in wanted]


def properties_of_kind(properties: Sequence[Property], kind: Kind) -> list[Property]:
    """Properties of the metrics of one kind, parts (``name:part``) included, in the table's order."""
    return [p for metric in load_metrics([kind]) for p in metric.own(properties)]


def _load(name: str, where: str) -> Metric:
    module, _, attribute = where.partition(":")
    hint = "let METRICS name a `module:METRIC` whose METRIC is a conviction.probing.metric.Metric"
    try:
        metric = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, TypeError) as error:  # TypeError: a Metric that lacks a trait
        raise InputError(f"the metric '{name}' ({where}) cannot be loaded: {error}", hint=hint) from error
    if not isinstance(metric, Metric):
        raise InputError(f"the metric '{name}' ({where}) is a {type(metric).__name__}", hint=hint)
    if metric.name != name:
        raise InputError(f"the metric '{name}' ({where}) calls itself '{metric.name}'", hint="name it alike in both")
    return metric
