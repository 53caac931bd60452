"""What the rows of the battery say of the judge: a confusion matrix, and thresholds that half of them set."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from conviction.probing.depth_records import Measurement, Measurements
from conviction.probing.metrics import propagation, robustness, shift
from conviction.studies.judge import judge

ORDER = ("broken", "none", "not shown", "surface", "shallow", "deep")
RANK = {"broken": 0, "none": 1, "not shown": 1, "surface": 2, "shallow": 3, "deep": 4}
"""'none' and 'not shown' claim nothing either. A broken model that is called anything else is called too deep."""

FREE: dict[tuple[Any, str], tuple[float, ...]] = {
    (shift, "NOTICED"): (0.05, 0.1, 0.2),
    (propagation, "PROPAGATED"): (0.1, 0.2, 0.4),
    (robustness, "HOLDS"): (0.7, 0.8, 0.9),
}
"""Thresholds that are tried, around those of today; all others stay."""


def report(rows: Sequence[Mapping[str, Any]], bases: Mapping[str, Measurements], recipes: int) -> dict[str, Any]:
    """Counts over all rows, the confusion matrix, what could be read on each base, and thresholds set on half."""
    return {
        "organisms_judged": len(rows),
        "organisms_described": recipes,
        **counts(rows),
        "confusion": confusion(rows),
        "thresholds": fit(rows, bases),
        "without_positive_controls": uncontrolled(rows, bases),
        "readable": {name: {c.metric: f"{c.outcome}: {c.text}" for c in base.controls} for name, base in bases.items()},
        "table": [
            {name: row[name] for name in ("model", "organism", "truth", "verdict", "ceiling", "reason")} for row in rows
        ],
    }


def counts(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many are exact, how many are called deeper than they are, and which."""
    deeper = [f"{row['model']}: {row['organism']}" for row in rows if RANK[row["verdict"]] > RANK[row["truth"]]]
    exact = sum(row["verdict"] == row["truth"] for row in rows)
    return {"of": len(rows), "exact": exact, "called_deeper_than_it_is": len(deeper), "which": deeper}


def confusion(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Truth → verdict → organisms."""
    return {
        truth: {verdict: n for verdict in ORDER if (n := _number(rows, truth, verdict))}
        for truth in ORDER
        if any(row["truth"] == truth for row in rows)
    }


def as_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The confusion matrix as a table: truths are rows, verdicts are columns."""
    lines = ["".join(f"{word:>10}" for word in ("", *ORDER))]
    lines += [
        f"{truth:>10}" + "".join(f"{_number(rows, truth, verdict) or '.':>10}" for verdict in ORDER)
        for truth in ORDER
        if any(row["truth"] == truth for row in rows)
    ]
    return "\n".join(lines)


def fit(rows: Sequence[Mapping[str, Any]], bases: Mapping[str, Measurements]) -> dict[str, Any]:
    """Thresholds with the best counts on every second organism of each truth, and their counts on the rest.

    Called too deep counts first, then exact; of equals the values of today, else the first.
    """
    ordered = sorted(rows, key=lambda row: row["truth"])
    fitted, rest = ordered[::2], ordered[1::2]
    today = tuple(getattr(module, name) for module, name in FREE)
    best = min(itertools.product(*FREE.values()), key=lambda values: (*_errors(fitted, bases, values), values != today))
    return {
        "free": {name: list(values) for (_, name), values in FREE.items()},
        "today": dict(zip((name for _, name in FREE), today, strict=True)),
        "chosen": dict(zip((name for _, name in FREE), best, strict=True)),
        "fitted_on": counts(again(fitted, bases, best)),
        "reported_on": counts(again(rest, bases, best)),
        "today_on_the_same": counts(again(rest, bases, today)),
    }


def uncontrolled(rows: Sequence[Mapping[str, Any]], bases: Mapping[str, Measurements]) -> dict[str, Any]:
    """What the verdicts would be if every metric counted as readable: tells a ceiling's part in an error."""
    bare = {name: base.model_copy(update={"controls": ()}) for name, base in bases.items()}
    judged = again(rows, bare, tuple(getattr(module, name) for module, name in FREE))
    verdicts = {f"{row['model']}: {row['organism']}": row["verdict"] for row in judged}
    return {**counts(judged), "confusion": confusion(judged), "verdicts": verdicts}


def _errors(rows: Sequence[Mapping[str, Any]], bases: Mapping[str, Measurements], values: Sequence[float]) -> Any:
    result = counts(again(rows, bases, values))
    return result["called_deeper_than_it_is"], -result["exact"]


def again(
    rows: Sequence[Mapping[str, Any]], bases: Mapping[str, Measurements], values: Sequence[float]
) -> list[dict[str, Any]]:
    """The rows, judged again from their measurements under other thresholds."""
    with thresholds(values):
        return [{**row, "verdict": _judged(row, bases[row["model"]])} for row in rows]


def _judged(row: Mapping[str, Any], base: Measurements) -> str:
    after = expand(row["measurements"]["after"], base)
    worn = row["measurements"]["after_benign"]
    return judge(base, after, after_benign=expand(worn, base) if worn is not None else None).verdict


@contextmanager
def thresholds(values: Sequence[float]) -> Iterator[None]:
    """Other values for ``FREE``, while the block lasts."""
    kept = [getattr(module, name) for module, name in FREE]
    try:
        for (module, name), value in zip(FREE, values, strict=True):
            setattr(module, name, value)
        yield
    finally:
        for (module, name), value in zip(FREE, kept, strict=True):
            setattr(module, name, value)


def compact(measured: Measurements) -> dict[str, dict[str, float]]:
    """Metric → item → value."""
    names = dict.fromkeys(m.metric for m in measured.measurements)
    return {name: {item: round(value, 6) for item, value in measured.of(name).items()} for name in names}


def expand(values: Mapping[str, Mapping[str, float]], like: Measurements) -> Measurements:
    """Measurements from their numbers, of the same topic as another's."""
    measured = [Measurement(metric=m, item=i, value=v) for m, items in values.items() for i, v in items.items()]
    return like.model_copy(update={"measurements": tuple(measured), "evidence": ()})


def _number(rows: Sequence[Mapping[str, Any]], truth: str, verdict: str) -> int:
    return sum((row["truth"], row["verdict"]) == (truth, verdict) for row in rows)
