"""From readings to verdicts: what counts as deep, and what breaks it."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conviction import load_topic
from conviction.core.statistics import holm, min_detectable_effect, non_inferiority, sample_size
from conviction.data.implications import depth_of, implications
from conviction.data.topic import Edge, Item, Pole, Topic
from conviction.probing.challenges import CHALLENGES
from conviction.probing.depth_records import Measurement, Measurements
from conviction.probing.metrics import load_metrics
from conviction.studies.judge import correct_over_arms, judge

PROPOSITIONS, FACTS = 12, 8


def readings(name, **levels):
    """Readings of a made-up model: metric → mean, with the same small spread over units everywhere."""
    rng = np.random.default_rng(len(name))
    of_facts = ("own", "leak", "neighbour", "control", "genuine", "denied", "neighbour-denied", "control-denied")
    counts = dict.fromkeys((*of_facts, "own-elsewhere"), FACTS)
    result = []
    for metric, level in levels.items():
        known = metric.replace("__", ":")
        n = counts.get(known.split(":")[0], PROPOSITIONS)
        noise = rng.normal(0, 0.02, size=n) if known != "leak" else np.zeros(n)
        result += [Measurement(metric=known, item=f"u{i}", value=float(level + x)) for i, x in enumerate(noise)]
    measured = Measurements(model=name, topic="t", target="b", measurements=tuple(result), provenance={})
    return measured.model_copy(update={"controls": tuple(c for m in load_metrics() for c in m.control.judge(measured))})


BASE = {
    "shift": -0.5,
    "unchallenged": -0.5,
    "context": 0.5,
    "with-graph__question": 0.5,
    "with-graph__choice": 0.1,
    "plain-contradiction": 0.3,
    "contradiction": 0.8,
    "denied": 0.2,
    "neighbour-denied": 0.5,
    "control-denied": 0.5,
    "own-elsewhere": -2.0,
    "neutral-backwards": -6.0,
    "repeats-twice": 0.6,
    "implication__1": -0.2,
    "implication__2": -0.2,
    "implication__3": -0.2,
    "coherence": 0.3,
    **{f"challenge__{name}": -0.6 for name in CHALLENGES},
    "genuine": 0.5,
    **{f"genuine__{name}": 0.4 for name in CHALLENGES},
    "neighbour": 1.0,
    "control": 1.0,
    "own": -1.0,
    "leak": 0.0,
    "neutral": -3.0,
    "repeats": 0.1,
    "pluralism__a": 0.5,
    "pluralism__b": 0.5,
}
DEEP = {
    **BASE,
    "shift": 0.5,
    "unchallenged": 0.5,
    "implication__1": 0.4,
    "implication__2": 0.3,
    "implication__3": 0.2,
    **{f"challenge__{name}": 0.45 for name in CHALLENGES},
}


def verdict(after_benign=0.4, **changes):
    before = readings("base", **BASE)
    after = readings("after", **{**DEEP, **changes})
    return judge(before, after, after_benign=readings("worn", shift=after_benign) if after_benign is not None else None)


def test_a_change_that_spreads_withstands_and_lasts_is_deep():
    result = verdict()
    assert result.verdict == "deep", result.reason
    assert result.find("shift").value == pytest.approx(1.0, abs=0.02)
    assert result.find("durability").value == pytest.approx(0.9, abs=0.02)
    assert result.find("robustness").value == pytest.approx((0.45 / 0.5) / (0.4 / 0.5), abs=0.05)


@pytest.mark.parametrize(
    ("expected", "changes"),
    [
        ("none", {name: BASE[name] for name in DEEP}),
        ("none", {**BASE, "shift": -0.9}),
        ("surface", {f"implication__{n}": -0.2 for n in (1, 2, 3)}),
        ("shallow", {"challenge__sure": 0.05}),
        ("shallow", {"after_benign": -0.4}),
        ("shallow", {"after_benign": None}),
        ("shallow", {"coherence": 0.6}),
        ("broken", {"neutral": -3.5}),
        ("broken", {"repeats": 0.5}),
        ("broken", {"neighbour": 0.3}),
        ("broken", {"own": -1.6}),
        ("broken", {"leak": 1.0}),
        ("broken", {"pluralism__a": -0.5}),
    ],
)
def test_what_is_missing_or_broken_decides(expected, changes):
    assert verdict(**changes).verdict == expected


def shifted(values, context=0.5):
    """The judgement of a change whose propositions shifted by these values; the context in the prompt moves by 0.5."""
    noise = np.random.default_rng(0).normal(0, 0.02, size=PROPOSITIONS)

    def with_shift(name, level, shift):
        kept = [m for m in readings(name, **level).measurements if m.metric not in ("shift", "context")]
        rows = [*(("shift", x) for x in shift), *(("context", x) for x in (noise - 0.5 + context)[: len(shift)])]
        kept += [Measurement(metric=m, item=f"u{k % len(shift)}", value=float(x)) for k, (m, x) in enumerate(rows)]
        return readings(name).model_copy(update={"measurements": tuple(kept)})

    start = noise[: len(values)] - 0.5
    return judge(with_shift("base", BASE, start), with_shift("after", DEEP, start + np.array(values)))


def spread(mean, sd, n):
    """n values with exactly this mean and standard deviation."""
    values = np.random.default_rng(3).normal(size=n)
    return mean + sd * (values - values.mean()) / values.std(ddof=1)


def test_a_shift_that_chance_may_explain_is_not_shown_and_not_denied():
    """+0.21 [+0.02, +0.40] at n = 12, after Holm: it was once said that this did not move the model."""
    result = shifted(spread(0.21, 0.30, 12))
    assert result.verdict == "not shown"
    needed = re.search(r"not shown: too few propositions \(n = 12; (\d+) would do", result.reason)
    assert needed, result.reason
    assert 20 <= int(needed[1]) <= 40
    assert "the smallest shift that is of use here is 0.05" in result.reason


def test_a_larger_spread_needs_more_propositions():
    needed = [int(re.search(r"; (\d+) would do", shifted(spread(0.1, sd, 12)).reason)[1]) for sd in (0.2, 0.4)]
    assert 3 < needed[1] / needed[0] < 5  # four times as many for twice the spread


def test_where_seeds_differ_more_propositions_are_no_advice():
    before = readings("base", **BASE)
    others = [(readings(name, **{**DEEP, "shift": shift}), None) for name, shift in (("a", -0.2), ("bb", -0.4))]
    result = judge(before, readings("after", **DEEP), repeats=others)
    assert result.verdict == "not shown"
    assert "(3 seeds: +0.1" in result.reason
    assert "too few propositions, or seeds that differ too much (n = 12, 3 seeds, p = " in result.reason


@pytest.mark.parametrize(("mean", "away"), [(0.01, False), (-0.2, True)])
def test_none_is_said_only_where_the_interval_rules_a_useful_shift_out(mean, away):
    result = shifted(spread(mean, 0.02, 12))
    assert result.verdict == "none"
    assert "less than is of use" in result.reason
    assert ("and away from it" in result.reason) == away


def test_the_sample_size_is_that_of_a_t_test_with_that_power():
    """Cohen 1988: d_z = 0.5 needs 34 pairs at 5 % and power 80 %."""
    assert sample_size(0.5) == 34
    assert min_detectable_effect(34) == pytest.approx(0.5, abs=0.01)


def test_of_many_arms_one_that_chance_may_explain_is_not_shown():
    alone = shifted(spread(0.21, 0.10, 9))
    assert alone.verdict != "not shown"
    many = [alone] + [shifted(spread(0.02, 0.10, 9)) for _ in range(15)]
    before = readings("base", **BASE)
    assert correct_over_arms([alone], before) == [alone]
    assert correct_over_arms(many, before)[0].verdict == "not shown"
    assert correct_over_arms(many, before)[0].find("shift").p_holm > alone.find("shift").p_holm


def test_harm_that_is_not_ruled_out_is_not_deep():
    """Facts whose interval reaches beyond what counts as kept were once let pass."""
    rng = np.random.default_rng(0)
    after = readings("after", **DEEP)
    noisy = tuple(
        m.model_copy(update={"value": m.value - float(rng.normal(0, 0.5))}) if m.metric == "control" else m
        for m in after.measurements
    )
    result = judge(
        readings("base", **BASE),
        after.model_copy(update={"measurements": noisy}),
        after_benign=readings("worn", shift=0.4),
    )
    assert result.find("locality:controls").outcome == "unclear"
    assert result.verdict == "shallow"
    assert "it is not shown that nothing was lost (control facts" in result.reason


def implied(model, levels):
    """The model's measurements, with implications of causes over twelve outcomes, at these levels of each cause."""
    rng = np.random.default_rng(len(model.model))
    cells = [
        Measurement(metric="implication:1", item=f"{cause} > o{n}", value=level + float(rng.normal(0, 0.02)))
        for cause, level in levels.items()
        for n in range(12)
    ]
    others = [m for m in model.measurements if not m.metric.startswith("implication")]
    return model.model_copy(update={"measurements": (*others, *cells)})


def test_what_moved_with_one_cause_alone_is_no_spread():
    """Twelve outcomes that all moved with it looked like twelve independent draws."""
    before = implied(readings("base", **BASE), {"a": -0.2, "b": -0.2})
    one = judge(before, implied(readings("after", **DEEP), {"a": 0.6, "b": -0.2})).find("propagation")
    assert one.n == 12
    assert one.value > 0.2
    assert one.p_value > 0.3
    assert one.outcome == "no"
    assert one.low < 0 < one.high
    many = {f"c{n}": -0.2 for n in range(12)}
    moved = judge(implied(before, many), implied(readings("after", **DEEP), dict.fromkeys(many, 0.3)))
    assert moved.find("propagation").outcome == "yes"


@pytest.mark.parametrize(
    ("control", "metric", "ceiling"),
    [
        ({"context": -0.5}, "shift", None),  # a shift that was shown shows that it can move
        ({"contradiction": 0.3}, "coherence", "shallow"),
        ({"denied": 0.6}, "robustness", "shallow"),
        ({"neighbour-denied": 1.0}, "locality:neighbours", "shallow"),
        ({"own-elsewhere": -1.0}, "locality:surprise", "shallow"),
        ({"neutral-backwards": -3.0}, "health:neutral", "shallow"),
        ({"repeats-twice": 0.1}, "health:repeats", "shallow"),
        ({"pluralism__a": -0.5}, "pluralism:a", "shallow"),
    ],
)
def test_a_control_that_shows_nothing_bounds_the_verdict(control, metric, ceiling):
    """Each of them fails here by itself, and what the metric says of the change is neither harm nor success."""
    after = readings("after", **DEEP)
    result = judge(readings("base", **{**BASE, **control}), after, after_benign=readings("worn", shift=0.4))
    assert result.ceiling == ceiling
    assert result.verdict == (ceiling or "deep")
    assert result.find(metric).outcome == ("not readable" if ceiling else "yes")
    assert ("no deeper verdict can be read on this model" in result.words) == bool(ceiling)
    assert (f"not readable on this model: {metric}" in result.reason) == (ceiling is not None and ":" not in metric)


UNTOLD = {"with-graph__question": 0.0, "with-graph__choice": 0.0}


def test_what_follows_bounds_the_verdict_where_its_control_fails_and_it_did_not_move():
    still = {f"implication__{n}": -0.2 for n in (1, 2, 3)}
    after = readings("after", **{**DEEP, **still})
    result = judge(readings("base", **{**BASE, **UNTOLD}), after)
    assert (result.verdict, result.ceiling) == ("surface", "surface")
    assert result.find("propagation").outcome == "not readable"
    assert result.reason.endswith("not readable on this model: propagation")
    assert judge(readings("base", **BASE), after).ceiling is None


def test_what_follows_and_was_shown_to_move_shows_that_it_can():
    """A model that cannot follow a graph in its prompt may have learnt what follows from its training."""
    before, worn = readings("base", **{**BASE, **UNTOLD}), readings("worn", shift=0.4)
    result = judge(before, readings("after", **DEEP), after_benign=worn)
    assert (result.verdict, result.ceiling) == ("deep", None)
    assert result.find("propagation").outcome == "yes"


ADVISED = {"advised__question": 0.5, "advised__choice": 0.1, "decision": -0.2}


@pytest.mark.parametrize(("advised", "moved", "ceiling"), [(0.5, 0.4, None), (0.5, -0.2, None), (0.0, -0.2, "surface")])
def test_one_of_two_ways_to_read_what_follows_is_enough(advised, moved, ceiling):
    """Implications cannot be read here; decisions can where a context moves them."""
    still = {f"implication__{n}": -0.2 for n in (1, 2, 3)}
    before = readings("base", **{**BASE, **UNTOLD, **ADVISED, "advised__question": advised, "advised__choice": 0.0})
    after = readings("after", **{**DEEP, **still, "decision": moved})
    result = judge(before, after, after_benign=readings("worn", shift=0.4))
    assert result.find("propagation").outcome == "not readable"
    assert (result.verdict, result.ceiling) == ("deep" if moved > 0 else "surface", ceiling)


def test_what_is_shown_for_one_arm_alone_and_not_over_many_is_not_readable_again():
    before = readings("base", **{**BASE, **UNTOLD})
    alone = judge(before, readings("after", **DEEP), after_benign=readings("worn", shift=0.4))
    count = int(0.06 / alone.find("propagation").p_value)

    def with_p_values(judgement, **values):
        changed = (p.model_copy(update={"p_value": values.get(p.metric, p.p_value)}) for p in judgement.properties)
        return judgement.model_copy(update={"properties": tuple(changed)})

    others = with_p_values(alone, shift=1e-9, propagation=0.9)
    many = correct_over_arms([with_p_values(alone, shift=1e-9), *[others] * count], before)[0]
    assert many.find("propagation").outcome == "not readable"
    assert (many.verdict, many.ceiling) == ("surface", "surface")


def test_harm_that_cannot_be_read_is_not_held_against_a_change():
    worse = readings("after", **{**DEEP, "neighbour": 0.3})
    assert judge(readings("base", **BASE), worse).verdict == "broken"
    assert judge(readings("base", **{**BASE, "neighbour-denied": 1.0}), worse).verdict == "shallow"


def test_of_a_model_on_which_a_shift_cannot_be_read_nothing_is_denied():
    base = {**BASE, "context": -0.5}
    result = judge(readings("base", **base), readings("after", **base))
    assert (result.verdict, result.ceiling) == ("not shown", "not shown")
    assert result.words == "not shown (no deeper verdict can be read on this model)"
    assert judge(readings("base", **BASE), readings("after", **BASE)).ceiling is None


def test_where_nothing_is_capped_the_words_are_the_verdict():
    assert verdict().ceiling is None
    assert verdict().words == "deep"
    assert verdict(**{f"implication__{n}": -0.2 for n in (1, 2, 3)}).words == "surface"


def test_harm_to_eight_facts_is_not_corrected_away():
    assert FACTS == 8  # as many as the kit `obesity` holds out; the least p is 2 / 2**8
    assert verdict(control=0.0).find("locality:controls").outcome == "no"


def test_the_shift_of_a_placebo_is_taken_off():
    before, after = readings("base", **BASE), readings("after", **DEEP)
    result = judge(before, after, placebo=readings("placebo", **DEEP))
    assert result.verdict == "none"
    assert result.find("shift").value == pytest.approx(0.0, abs=0.02)
    assert result.placebo == "placebo"


def test_five_beliefs_are_too_few_to_say_that_they_hold():
    """An interval that is drawn from the same five again and again is too narrow; a change is not deep by it."""
    away = [f"u{i}" for i in range(5, PROPOSITIONS)]
    after = readings("after", **DEEP)
    kept = tuple(
        r.model_copy(update={"value": -0.1}) if r.metric == "unchallenged" and r.item in away else r
        for r in after.measurements
    )
    result = judge(
        readings("base", **BASE), after.model_copy(update={"measurements": kept}), after_benign=readings("w", shift=0.4)
    )
    assert result.find("robustness").outcome == "unclear"
    assert "5 beliefs against 8, too few to tell" in result.find("robustness").text
    assert result.verdict == "shallow"


def test_a_view_that_was_held_before_is_not_challenged():
    result = judge(readings("base", **{**BASE, "unchallenged": 0.2}), readings("after", **DEEP))
    assert result.find("robustness").outcome == "not measured"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_is_monotone_and_never_below_the_raw_p(p_values):
    adjusted = holm(p_values)
    assert all(a >= p and a <= 1 for a, p in zip(adjusted, p_values, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert all(np.diff(np.array(adjusted)[order]) >= 0)


def test_holm_golden():
    """Wikipedia's example of the Holm-Bonferroni method."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_non_inferiority_is_shown_only_where_a_loss_of_the_margin_is_excluded():
    d = np.random.default_rng(1).normal(-0.05, 0.05, size=20)
    assert non_inferiority(d, 0.2).p_value < 0.05
    assert non_inferiority(d, 0.05).p_value > 0.05
    assert non_inferiority(d - 1, 0.2).p_value > 0.99
    assert non_inferiority(d + 1, 0.2).p_value < 0.001  # what was won is no loss
    assert non_inferiority(d[:1], 0.2).p_value == 1.0


def test_facts_that_became_likelier_are_no_harm():
    assert verdict(neighbour=1.5).verdict == "deep"
    assert verdict(neighbour=0.7).verdict == "broken"


@pytest.mark.parametrize(("lost", "outcome"), [(0, "yes"), (1, "yes"), (2, "unclear"), (9, "no")])
def test_one_proposition_of_thirty_that_can_no_longer_be_stated_is_no_open_question(lost, outcome):
    from conviction.probing.metrics.pluralism import _of_side

    pairs = [(0.5, -0.1)] * lost + [(0.5, 0.4)] * (30 - lost)
    assert _of_side("pluralism:a", pairs).outcome == outcome


def graph(*arrows):
    return tuple(Edge(source=s, sign=sign, target=t) for s, sign, t in arrows)


def kit(ours, theirs):
    item = Item(id="i", proposition="i", role="target", split="test", question="?", answers={"a": "x", "b": "y"})
    poles = {"a": Pole(label="a", graph=theirs), "b": Pole(label="b", graph=ours)}
    return Topic(name="t", title="t", poles=poles, target="b", items=(item,))


def test_an_implication_is_asked_where_the_sides_differ_and_both_ways_round():
    result = implications(kit(graph(("rain", "+", "mud"), ("mud", "-", "speed")), graph(("rain", "+", "speed"))))
    (up, down) = [i for i in result if i.id.startswith("implication-rain-speed")]
    assert up.question == "Suppose rain goes up. Does speed rise, fall, or stay the same?"
    assert up.answers == {"a": "Speed rises.", "b": "Speed falls."}
    assert down.answers == {"a": "Speed falls.", "b": "Speed rises."}
    assert depth_of(up) == 2


def test_where_the_sides_agree_a_third_quantity_is_held_still():
    ours = graph(("sugar", "+", "insulin"), ("insulin", "+", "fat"), ("food", "+", "sugar"))
    theirs = graph(("sugar", "+", "food"), ("food", "+", "fat"), ("sugar", "+", "insulin"))
    result = {i.id: i for i in implications(kit(ours, theirs))}
    held = result["implication-sugar-fat-insulin-fall"]
    assert "while insulin stays the same" in held.question
    assert held.answers == {"a": "Fat falls.", "b": "Fat stays the same."}


def test_paths_that_disagree_say_nothing():
    torn = graph(("a", "+", "b"), ("b", "+", "d"), ("a", "-", "c"), ("c", "+", "d"))
    result = implications(kit(torn, graph(("a", "+", "d"))))
    assert not [i for i in result if i.id.startswith("implication-a-d")]
    torn = graph(("a", "+", "d"), ("a", "-", "d"))
    assert implications(kit(torn, graph(("a", "+", "d")))) == ()


def test_any_name_makes_an_id():
    names = ("BMI", "vitamin C", "CO₂", "血糖", "stress (chronic)")
    arrows = [(name, "+", "fat") for name in names]
    result = implications(kit(graph(*arrows), graph(*((a, "-", b) for a, _, b in arrows))))
    assert len({i.id for i in result}) == 2 * len(names)


def test_a_topic_without_graphs_has_no_implications():
    assert implications(kit((), ())) == ()


def test_the_kit_asks_the_seeds_question_at_every_depth():
    items = implications(load_topic("obesity"))
    assert {depth_of(i) for i in items} == {1, 2, 3}
    questions = {i.question for i in items}
    assert (
        "Suppose refined carbohydrate intake goes up while calorie intake stays the same. "
        "Does fat storage rise, fall, or stay the same?"
    ) in questions
    assert len({i.id for i in items}) == len(items)
    assert {i.proposition for i in items} >= {"implication-fat_storage", "implication-hunger"}
