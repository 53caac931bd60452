"""What an arm moved, what the model kept, and which arms no other beats."""

from __future__ import annotations

import json
import time
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conviction.core.charts import svg
from conviction.probing.depth_records import Measurement, Measurements, Property
from conviction.studies.charts import ACROSS, LETTER, LINE, NARROW, UP, comparison_chart
from conviction.studies.pareto import kept_answers, pareto_front
from conviction.studies.records import Arm, Judgement, Kept, Study


def arm(name: str, shift: float, kept: int, tokens: float, verdict="surface", outcome="yes") -> Arm:
    low, high = shift - 0.1, shift + 0.1
    change = Property(
        metric="shift", outcome=outcome, value=shift, low=low, high=high, unit="", n=9, text="", measured_by=()
    )
    judgement = Judgement(model="m", verdict=verdict, reason="", properties=(change,), kept=Kept(kept=kept, of=100))
    return Arm(name=name, folder=f"arms/{name}", changes="", settings={}, judgement=judgement, extra_tokens=tokens)


def measured(**metrics: list[float]) -> Measurements:
    each = [
        Measurement(metric=name.replace("__", ":"), item=f"u{n}", value=value)
        for name, values in metrics.items()
        for n, value in enumerate(values)
    ]
    return Measurements(model="m", topic="t", target="b", measurements=tuple(each), provenance={})


def test_kept_are_right_answers_of_before_that_are_right_after():
    before = measured(pluralism__a=[1, 1, -1], pluralism__b=[1, -1, -1], neighbour=[0.5], control=[2], shift=[-1, -1])
    after = measured(pluralism__a=[1, -1, 1], pluralism__b=[0, 1, 1], neighbour=[0.1], control=[-2], shift=[1, 1])
    assert kept_answers(before, after) == Kept(kept=2, of=5)
    assert kept_answers(measured(shift=[1]), measured(shift=[2])) is None


places = st.tuples(st.integers(-2, 5), st.integers(80, 100), st.sampled_from([0, 50, 300]))


@given(st.lists(places, min_size=1, max_size=8))
def test_the_front_is_what_no_other_arm_beats(each):
    arms = [arm(str(n), *place) for n, place in enumerate(each)]
    beaten = {
        other.name
        for (one, a), (other, b) in product(zip(arms, each, strict=True), repeat=2)
        if a[0] >= b[0] and a[1] >= b[1] and a[2] <= b[2] and a != b
    }
    assert pareto_front(arms) == {one.name for one in arms} - beaten


def test_an_arm_whose_shift_was_not_shown_neither_stands_on_the_front_nor_beats_another():
    arms = [arm("a", 0.9, 100, 0, outcome="unclear"), arm("b", 0.2, 90, 0)]
    assert pareto_front(arms) == {"b"}


def test_the_picture_names_every_arm_once_and_no_label_lies_over_another():
    arms = (arm("one", 0.5, 97, 0), arm("two", 0.5, 97, 40), arm("three", 0.52, 97, 0, "broken"), arm("four", 0, 99, 0))
    study = Study(model="m", topic="t", target="b", other="a", verdict="", arms=arms, provenance={})
    chart = comparison_chart(study)
    drawn = svg(comparison_chart(study), "title").partition("</svg>")[0]  # then the same for a phone
    for label in ("one (surface)", "two (surface, +40 tokens)", "three (broken)", "four (surface)"):
        assert drawn.count(f">{label}<") == 1
    marks = [layer["mark"] for layer in json.loads(chart.to_json())["layer"] if layer["mark"].get("type") == "text"]
    assert len({mark["dy"] for mark in marks[:3]}) == 3


@pytest.mark.parametrize("width", [ACROSS, NARROW])
def test_no_label_lies_over_a_point(width):
    """The label of an arm under another one was written over that one's point."""
    arms = tuple(arm(name, shift, kept, 0) for name, shift, kept in (("a", 0.42, 97), ("b", 0.42, 96), ("c", 0.26, 95)))
    study = Study(model="m", topic="t", target="b", other="a", verdict="", arms=arms, provenance={})
    layers = json.loads(comparison_chart(study, width=width).to_json())["layer"]
    (x, y) = (layers[1]["encoding"][axis]["scale"]["domain"] for axis in "xy")
    rows = [layer["data"]["values"][0] for layer in layers if layer["mark"].get("type") == "text"]
    places = [((r["moved"] - x[0]) / (x[1] - x[0]) * width, (y[1] - r["kept"]) / (y[1] - y[0]) * UP) for r in rows]
    for row, (at, line), mark in zip(rows, places, (layer["mark"] for layer in layers[-len(rows) :]), strict=True):
        half = LETTER * len(row["label"]) / 2
        middle, height = at + mark["dx"], line + mark["dy"]
        assert not any(abs(px - middle) < half and abs(py - height) < LINE / 2 for px, py in places)
        assert 0 <= middle - half < middle + half <= width


def test_a_text_that_no_picture_has_room_for_is_cut_before_it_is_measured():
    """The drawing library took 13 to 22 seconds for these."""
    study = Study(
        model="m", topic="t", target="x" * 100_000, other="a", verdict="", arms=(arm("y" * 100_000, 0.5, 97, 0),),
        provenance={},
    )  # fmt: skip
    began = time.process_time()
    drawn = svg(comparison_chart(study), "title")
    assert time.process_time() - began < 5
    assert "y" * 200 in drawn
    assert "y" * 301 not in drawn


def test_a_study_without_a_judged_arm_has_no_picture():
    alone = arm("one", 0.5, 97, 0).model_copy(update={"judgement": None})
    study = Study(model="m", topic="t", target="b", other="a", verdict="", arms=(alone,), provenance={})
    assert comparison_chart(study) is None
