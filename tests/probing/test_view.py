"""Whether a change moved the view: on scripted models that like milk more, less, or as before."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tea import liking

from conviction import ScriptedModel, load_topic
from conviction.probing.view import measure_view_change


def change(tea, before, after):
    models = (ScriptedModel(id=name, likes=liking(milky)) for name, milky in (("a", before), ("b", after)))
    return measure_view_change(*models, load_topic(tea))


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (-0.3, 0.4, "moved: gap -0.30 → +0.40 nats per token towards milky, shift +0.70 (95 % +0.70 to +0.70), 9 of 9"),
        (
            -0.3,
            -0.1,
            "moved: gap -0.30 → -0.10 nats per token towards milky, shift +0.20 (95 % +0.20 to +0.20), 0 of 9",
        ),
        (-0.3, -0.3, "not shown to have moved: gap -0.30 → -0.30"),
        (0.4, -0.3, "moved away: gap +0.40 → -0.30"),
    ],
)
def test_a_line_says_whether_it_moved(tea, before, after, words):
    assert change(tea, before, after).text.startswith(words)


def test_what_was_lost_is_counted(tea):
    assert "0 of 0 flipped, 9 of 9 lost; 9 held-out propositions" in change(tea, 0.4, -0.3).text


def test_a_shift_that_chance_may_explain_is_not_called_one(tea):
    """Three propositions of nine move up, the rest down: no direction."""

    def likes(messages, answer):
        asked = messages[-1].content if messages else ""
        up = 0.5 if "Question 3" in asked or "Question 4" in asked or "Question 5" in asked else -0.2
        return -2.0 + (up if answer.startswith("Milky") else 0.0)

    view = measure_view_change(ScriptedModel(likes=liking(0.0)), ScriptedModel(likes=likes), load_topic(tea))
    assert view.text.startswith("not shown to have moved")


def test_only_the_test_split_is_asked_and_every_gap_has_its_rows(tea):
    topic, view = load_topic(tea), change(tea, -0.3, 0.4)
    held_out = {i.proposition for i in topic.of_role("target") if i.split == "test"}
    assert set(view.before) == set(view.after) == held_out
    assert {s.item for s in view.evidence} == {i.id for i in topic.of_role("target", "paraphrase") if i.split == "test"}
    assert len({s.id for s in view.evidence}) == len(view.evidence) == 2 * 2 * 2 * len(held_out)


def test_a_topic_that_holds_nothing_out_gives_no_line(tea):
    topic = load_topic(tea)
    trained = (
        replace(topic, items=())
        if not hasattr(topic, "model_copy")
        else topic.model_copy(update={"items": tuple(i for i in topic.items if i.split == "train")})
    )
    model = ScriptedModel(likes=liking(0.0))
    assert measure_view_change(model, model, trained) is None
