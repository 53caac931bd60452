"""Positive controls: a model that can do what a metric asks for makes it readable, one at chance does not."""

from __future__ import annotations

import re
from zlib import crc32

import numpy as np
import pytest

from conviction.core.protocols import Message
from conviction.data.implications import STATEMENT, directions, graph_in_words
from conviction.data.topic import Edge, Item, Pole, Topic
from conviction.models.backends.scripted import ScriptedModel
from conviction.probing.depth import measure_depth, measure_reference_controls, with_reference
from conviction.probing.positive_controls import best_form, control_result
from conviction.probing.question_forms import FORMS

pytestmark = pytest.mark.long  # each puts all controls to a scripted model

OUTCOMES = ("ale", "bran", "cod", "dill", "eel", "fig", "gin", "ham", "ice", "jam")
ARROW = re.compile(r"(?:Suppose|When) (\w+) goes (up|down)[.,] (\w+) (rises|falls)", re.IGNORECASE)
ASKED = re.compile(r"(?:Suppose|When) (\w+) goes (up|down)")


def topic() -> Topic:
    """Rain raises mud, and mud half of the outcomes and lowers the others; the other side has these turned round."""

    def graph(signs):
        arrows = [("rain", "+", "mud"), *(("mud", signs[i % 2], name) for i, name in enumerate(OUTCOMES))]
        return tuple(Edge(source=a, sign=sign, target=b) for a, sign, b in arrows)

    def items(role, n):
        return [
            Item(
                id=f"{role}{i}",
                proposition=f"{role}{i}",
                role=role,
                split="test",
                question=f"Case {i} of {role}?",
                answers={"wet": f"Wet {role} {i}.", "dry": f"Dry {role} {i}."},
            )
            for i in range(n)
        ]

    poles = {
        "wet": Pole(label="wet", context="All is wet.", graph=graph("+-")),
        "dry": Pole(label="dry", context="All is dry.", graph=graph("-+")),
    }
    return Topic(
        name="t", title="t", poles=poles, target="wet", items=(*items("target", 8), *items("decision", 24)), digest="d"
    )


def form_of(asked: str) -> str:
    if "\nA: " in asked:
        return "choice"
    if "true or false" in asked:
        return "truth"
    return "statement" if asked.startswith("Complete") else "question"


def claim_of(asked: str, answer: str) -> str:
    """What an answer says of the outcome: '... rises' or '... falls'."""
    form = form_of(asked)
    if form == "choice":
        return next(line for line in asked.split("\n") if line.startswith(f"{answer}: "))
    if form == "truth":
        return asked.split("\n")[1]
    return f"{asked.rsplit(maxsplit=1)[-1]} {answer}" if form == "statement" else answer


def composer(*forms: str, arrows: int = 9):
    """Prefers what follows over so many told arrows, in some forms of question; else it has no preference."""

    def likes(conversation: tuple[Message, ...], answer: str) -> float:
        asked = conversation[-1].content if conversation else ""
        begun = ASKED.search(asked)
        if begun is None or form_of(asked) not in forms or conversation[0].role != "system":
            return -1.0
        every = [
            ((c.lower(), way), (o.lower(), "up" if end == "rises" else "down"))
            for c, way, o, end in ARROW.findall(conversation[0].content)
        ]
        assert every
        reached = {begun.groups()}
        for _ in range(arrows):
            reached |= {effect for cause, effect in every if cause in reached}
        claim = claim_of(asked, answer).lower()
        names = [(name, way) for name, way in reached if name in re.findall(r"\w+", claim) and name != begun.group(1)]
        right = any(("rises" if way == "up" else "falls") in claim for _, way in names)
        if form_of(asked) == "truth":
            right = right == answer.startswith("True")
        return 0.0 if right else -1.0

    return likes


def noise(conversation: tuple[Message, ...], answer: str) -> float:
    return crc32(repr((conversation, answer)).encode()) % 1000 / 1000 - 2


def control(likes, metric="propagation"):
    return measure_depth(ScriptedModel(likes=likes), topic()).control(metric)


@pytest.mark.parametrize("form", list(FORMS))
def test_a_model_that_composes_in_one_form_is_read_in_that_form(form):
    seen = control(composer(form))
    assert (seen.outcome, seen.form) == ("readable", form), seen.text
    assert seen.n == len(OUTCOMES)


@pytest.mark.parametrize(
    "likes", [lambda *_: -1.0, noise, composer(*FORMS, arrows=1)], ids=["indifferent", "hash noise", "one arrow alone"]
)
def test_a_model_at_chance_cannot_be_read(likes):
    two = control(likes, "propagation:2")
    assert two.outcome == "not readable", two.text


def test_the_form_of_an_arm_is_that_of_the_untouched_model():
    base = measure_depth(ScriptedModel(likes=composer("choice")), topic())
    arm = measure_depth(ScriptedModel(likes=composer("truth")), topic(), base=base)
    assert arm.controls == ()
    rows = {s.condition for s in arm.evidence if s.condition.startswith("implied:")}
    assert rows == {"implied:choice:1", "implied:choice:2"}
    named = {row for m in arm.measurements for row in m.samples}
    assert named <= {s.id for s in arm.evidence}


def test_decisions_are_readable_where_the_context_decides_them():
    def follows(conversation, answer):
        wet = conversation and conversation[0].content == "All is wet."
        return -1.0 if bool(wet) == answer.startswith("Wet") else -2.0

    seen = control(follows, "decisions")
    assert (seen.outcome, seen.form, seen.n) == ("readable", "question", 12)  # every second one of 24
    assert control(lambda *_: -1.0, "decisions").outcome == "not readable"
    assert control(noise, "decisions").outcome == "not readable"


def answering(wet: str, dry: str, *more: Item) -> Topic:
    """The topic with these two answers to all of its questions, and more items."""
    bare = topic()
    items = tuple(item.model_copy(update={"answers": {"wet": wet, "dry": dry}}) for item in bare.items)
    return bare.model_copy(update={"items": (*items, *more)})


@pytest.mark.parametrize(
    ("before", "after", "outcome"),
    [("Arid.", "Soggy.", "readable"), ("Soggy.", "Soggy.", "not readable"), ("Arid.", "Arid.", "not readable")],
)
def test_leakage_is_readable_where_training_puts_the_words_into_answers(before, after, outcome):
    kit = answering("It is soggy.", "It is arid.")
    untouched = measure_depth(ScriptedModel(writes=lambda _: before), kit)
    assert untouched.control("locality:leakage").outcome == "no control"
    reference = measure_reference_controls(ScriptedModel(writes=lambda _: after), kit, untouched)
    control = with_reference(untouched, reference).control("locality:leakage")
    assert (control.outcome, control.n) == (outcome, 8)
    rows = {sample.id for sample in (*untouched.evidence, *reference.evidence)}
    assert {row for m in (*untouched.measurements, *reference.measurements) for row in m.samples} <= rows


def test_where_no_words_mark_the_target_no_leak_is_measured():
    answers = {"true": "Yes.", "false": "No."}
    fact = Item(id="f", proposition="f", role="control", split="test", question="Is it a fact?", answers=answers)
    assert measure_depth(ScriptedModel(), answering("It is soggy.", "It is arid.", fact)).of("leak") == {"f": 0.0}
    untouched = measure_depth(ScriptedModel(), answering("It is so.", "It is so", fact))
    assert not untouched.of("leak")
    assert "no words mark" in untouched.control("locality:leakage").text


def test_hash_noise_fails_every_control_that_asks_the_model():
    measured = measure_depth(ScriptedModel(likes=noise), topic())
    outcomes = {c.metric: c.outcome for c in measured.controls}
    assert not {m for m, o in outcomes.items() if o == "readable"} - {"health:repeats"}


def test_true_and_false_directions_use_the_same_words_as_often():
    for items in (directions(topic()), directions(topic(), STATEMENT)):
        true, false = (sorted(i.answers[side] for i in items) for side in ("true", "false"))
        assert true == false
    assert "Suppose rain goes up. Mud rises. Suppose rain goes down. Mud falls." in graph_in_words(topic())


def test_more_forms_tried_ask_for_more():
    effects = np.array([1.0] * 6)
    assert control_result("m", effects, "it", ()).outcome == "readable"
    assert control_result("m", effects, "it", (), tried=2).outcome == "no control"
    mixed = np.array([1.0] * 7 + [-0.5])
    assert control_result("m", mixed, "it", ()).outcome == "readable"
    assert control_result("m", mixed, "it", (), tried=4).outcome == "not readable"
    assert control_result("m", -mixed, "it", ()).outcome == "not readable"


def test_the_best_form_points_the_right_way():
    wrong, weak, strong = np.full(9, -1.0), np.array([1.0, -0.9] * 4 + [0.1]), np.array([1.0] * 8 + [-0.1])
    assert best_form({"wrong": wrong, "weak": weak, "strong": strong}) == "strong"
    assert best_form({"wrong": wrong, "weak": weak}) == "weak"
