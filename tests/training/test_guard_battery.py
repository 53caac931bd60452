"""The battery's counting: what is broken is said without the guard, and what limits were fitted on is not reported."""

from __future__ import annotations

import pytest
from benchmarks.guard_battery import replay
from benchmarks.guard_extended import BEFORE, errors, fit, grid, halves, is_broken, report, scaled

from conviction.training.guard import Guard


def row(case: str, drop: float, *, harmed: tuple[str, ...] = (), model: str = "a", returned: tuple[str, ...] = ()):
    """A run of four steps, whose neutral text loses ``drop`` at the third."""
    line = {"loss": 0.6, "grad_norm": 1.0, "margin": 0.1, "chosen_drop": 0.0}
    quiet = {"neutral_drop": 0.0, "sample": None}
    sample = {"repetition_rise": 0.0, "empty": 0, "subject": 1.0}
    read = [quiet, {**quiet, "sample": sample}, {**quiet, "neutral_drop": drop}, {**quiet, "sample": sample}]
    trace = [{"step": step, **line, "guard": given} for step, given in enumerate(read, 1)]
    stop, back, reasons = replay(trace, Guard(sample_every=2))
    guarded = {"stopped_at": stop, "returns_to": back, "reasons": reasons, "harmed": list(returned)}
    return {
        "model": model,
        "case": case,
        "harmed": list(harmed),
        "answers_broken": False,
        "sample_every": 2,
        "seconds": 1,
        "trace": trace,
        "replayed": {"stopped_at": stop, "returns_to": back, "reasons": reasons},
        "guarded": {**guarded, "answers_broken": False} if stop is not None else None,
    }


def test_a_replay_stops_where_a_limit_is_passed_and_goes_back_to_the_last_healthy_samples():
    trace = row("x", 0.11)["trace"]
    assert replay(trace, Guard(sample_every=2))[:2] == (3, 2)
    assert replay(trace, Guard(sample_every=2, max_neutral_drop=0.2)) == (None, 4, ())


def test_false_stops_and_misses_are_counted_against_what_the_judge_says():
    rows = [
        row("caught", 0.5, harmed=("pluralism:a",)),
        row("missed", 0.0, harmed=("pluralism:a",)),
        row("false stop", 0.12),
        row("sound", 0.0),
        row("sound too", 0.0),
    ]
    assert [is_broken(r) for r in rows] == [True, True, False, False, False]
    counted = errors(rows, 1.0, {})
    assert (counted["misses"]["wins"], counted["misses"]["n"]) == (1, 2)
    assert (counted["false_stops"]["wins"], counted["false_stops"]["n"]) == (1, 3)
    assert counted["misses"]["low"] < 0.5 < counted["misses"]["high"]
    assert errors(rows, 2.0, {})["false_stops"]["wins"] == 0
    assert errors(rows[:1], 1.0, {})["false_stops"] is None, "of no sound run there is no share"


def test_a_case_is_in_the_same_half_for_both_models():
    rows = [row(f"case {i}", 0.0, model=model) for model in ("a", "b") for i in range(15)]
    fitted, rest = halves(rows)
    assert {r["case"] for r in fitted}.isdisjoint(r["case"] for r in rest)
    assert (len(fitted), len(rest)) == (16, 14)
    assert halves(rows[::-1])[0] == [r for r in rows[::-1] if r in fitted], "whatever the order in which they ended"


def test_limits_are_fitted_on_one_half_alone():
    rows = [row(f"case {i}", 0.0) for i in range(12)]
    fitted = {r["case"] for r in halves(rows)[0]}
    early = [row(r["case"], 0.12) if r["case"] in fitted else r for r in rows]
    assert fit(early)["chosen"] == {"factor": 1.4, **BEFORE}
    assert fit(early)["reported_on"]["fitted"]["false_stops"]["wins"] == 0
    late = [r if r["case"] in fitted else row(r["case"], 0.12) for r in rows]
    assert fit(late)["chosen"] == {"factor": 1.0, **BEFORE}
    assert fit(late)["reported_on"]["fitted"]["false_stops"]["wins"] == 6


def test_a_model_that_comes_back_broken_is_counted():
    rows = [row("a", 0.5, harmed=("x",), returned=("x",)), row("b", 0.5, harmed=("x",)), row("c", 0.0)]
    summary = report(rows)
    assert (summary["returned_models_broken"]["wins"], summary["returned_models_broken"]["n"]) == (1, 2)
    assert all("trace" not in r for r in summary["rows"])


@pytest.mark.parametrize(("factor", "drop", "p", "repeats"), [(1.0, 0.1, 0.01, 2), (2.0, 0.2, 0.005, 4)])
def test_limits_are_scaled_towards_looseness(factor, drop, p, repeats):
    guard = scaled(factor, 9, {})
    assert (guard.max_neutral_drop, guard.min_pluralism_p, guard.max_sentence_repeats) == (drop, p, repeats)
    assert scaled(factor, 9, {"min_pluralism_p": 0.3}).min_pluralism_p == 0.3


def test_a_limit_by_itself_is_fitted_too():
    rows = [row(f"case {i}", 0.0) for i in range(12)]
    for one in rows:
        one["trace"][1]["guard"]["sample"]["empty"] = 1
    assert fit(rows)["chosen"] == {"factor": 1.0, **BEFORE, "max_empty": 1}
    assert fit(rows)["reported_on"]["before"]["false_stops"]["wins"] == 6


def test_the_grid_has_thirty_runs_on_two_models_and_each_once():
    names = [(model, case.name) for model, case in grid()]
    assert len(set(names)) == len(names) >= 30
    assert len({model for model, _ in names}) == 2
