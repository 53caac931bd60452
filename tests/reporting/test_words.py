"""An arm in one line of plain words, over all states that its record can be in."""

from __future__ import annotations

from itertools import combinations, product
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conviction.core.run import Failure
from conviction.probing.depth_records import Property, PropertyOutcome
from conviction.probing.metrics import load_metrics
from conviction.reporting.words import OUTCOMES, UNDECIDED, factor, plain, plain_parts, verdict_legend
from conviction.studies.records import Arm, Judgement, Study, Verdict

STATES: tuple[PropertyOutcome, ...] = get_args(PropertyOutcome)
PARTS = {
    "locality": ("neighbours", "controls", "surprise", "leakage"),
    "health": ("neutral", "repeats"),
    "pluralism": ("cico", "insulin"),
}
NAMES = [f"{m.name}:{part}" if part else m.name for m in load_metrics() for part in PARTS.get(m.name, ("",))]
DAMAGE = [name for name in NAMES if name.partition(":")[0] in PARTS]
REST = [name for name in NAMES if name not in (*DAMAGE, "shift")]


def judged(states: dict[str, PropertyOutcome], *, high: float = 0.1, verdict: Verdict = "surface") -> Arm:
    """An arm with properties in these states."""
    properties = tuple(
        Property(metric=name, outcome=outcome, value=0.0, high=high, unit="", n=9, text="", measured_by=())
        for name, outcome in states.items()
    )
    judgement = Judgement(model="m", verdict=verdict, reason="", properties=properties)
    return Arm(name="x", folder="arms/x", changes="", settings={}, judgement=judgement)


def unjudged(failure: Failure | None) -> Arm:
    return Arm(name="x", folder="arms/x", changes="", settings={}, failure=failure)


def check(states: dict[str, PropertyOutcome]) -> None:
    known, unknown = plain_parts(judged(states))
    line = plain(judged(states))
    counting = states if states.get("shift") == "yes" else {k: v for k, v in states.items() if k not in REST}
    assert line
    assert "{" not in line
    assert not line.startswith((",", ";", " "))
    for outcome, words in UNDECIDED.items():
        assert (f"{words} (" in unknown) == (outcome in counting.values()), (states, line)
    for metric in load_metrics():
        for name in (name for name in counting if name.partition(":")[0] == metric.name):
            (one,) = [p for p in judged(states).judgement.properties if p.metric == name]
            words = metric.phrases_of(one)
            assert (words.bad in known) == (states[name] == "no"), (name, line)
            if words.good:
                assert (words.good in known.split(", ")) == (states[name] == "yes"), (name, line)
            if states[name] in UNDECIDED:
                assert words.about in unknown, (name, line)


@pytest.mark.long
def test_every_pair_of_states_of_any_two_properties_beside_every_state_of_the_shift():
    for shift, (one, other) in product(STATES, combinations(NAMES, 2)):
        for first, second in product(STATES, repeat=2):
            check({"shift": shift, one: first, other: second})


@given(st.fixed_dictionaries({name: st.sampled_from(STATES) for name in NAMES}))
def test_all_properties_in_any_states(states):
    check(states)


def test_the_line_of_the_issue():
    states = {"shift": "yes", "propagation": "no", "pluralism:cico": "no", "health:neutral": "yes"}
    assert plain(judged(states)) == "says it, cannot explain it, forgot the view of cico"


@pytest.mark.parametrize(
    ("arm", "line"),
    [
        (unjudged(None), "not finished: not judged yet"),
        (unjudged(Failure(kind="BudgetSpent", message="x", hint="")), "left out: no time was left"),
        (unjudged(Failure(kind="InputError", message="x", hint="")), "failed: nothing to judge"),
        (judged({}), "nothing was measured"),
        (judged({"shift": "no"}), "does not say it"),
        (judged({"shift": "no"}, high=-0.01), "does not say it, moved away from it"),
        (judged({"shift": "unclear"}), "not shown: too few questions to tell (saying it)"),
        (judged({"shift": "yes", "durability": "not measured"}),
         "says it; not measured (keeping it through other training)"),
        (judged({"shift": "yes", "propagation": "not readable"}),
         "says it; not readable on this model (explaining it)"),
        (judged({"shift": "yes", "mine": "no"}), "says it"),
    ],
)  # fmt: skip
def test_lines(arm, line):
    assert plain(arm) == line


def test_every_outcome_and_verdict_has_a_word():
    assert set(OUTCOMES) == set(STATES)
    study = Study(
        model="m", topic="t", target="b", other="a", verdict="", arms=(judged({}), unjudged(None)), provenance={}
    )
    words = dict(verdict_legend(study))
    assert set(get_args(Verdict)) | {"unfinished"} == set(words)
    assert factor(0.41) == "1.5 times"
    assert factor(1e9)
