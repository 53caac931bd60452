"""What ``probe`` concludes, on scripted models that hold a view, like a text, or do neither."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest
from tea import items as many_items
from tea import tea_items

from conviction import ScriptedModel, load_topic, probe
from conviction.probing.queries import foreign_questions
from conviction.views.scorecard import show_scorecard

CONTEXTS = {"Tea is best milky.": 1.0, "Tea is best plain.": -1.0}


def numbers(text: str) -> list[str]:
    return re.findall(r"\d+", text)


def tea_drinker(*, own: float = 0.0, foreign: float = 0.0, obedience: float = 1.0, letters=None):
    """Likes milky answers by ``own`` nats per token under their question and by ``foreign`` under another one.

    letters  (options text) → log p(A) - log p(B)
    """

    def likes(messages, answer):
        asked = messages[-1].content if messages else ""
        if answer in ("A", "B"):
            return -1.0 + (letters(asked) if letters is not None and answer == "A" else 0.0)
        if not answer.startswith("Milky"):
            return -2.0
        system = messages[0].content if messages and messages[0].role == "system" else ""
        fits = numbers(asked)[:1] == numbers(answer)[:1]
        return -2.0 + (own if fits else foreign) + obedience * CONTEXTS.get(system, 0.0)

    return ScriptedModel(likes=likes)


@pytest.fixture
def topic(write_topic):
    return load_topic(write_topic(items=tea_items(8)))


@pytest.fixture
def topic_with_facts(write_topic):
    return load_topic(write_topic(items=many_items()))


def verdict_of(model, topic, **options):
    summary = probe(model, topic, **options).summary
    return summary.preferred_pole, summary.verdict


@pytest.mark.parametrize("sign", [1, -1])
def test_texts_that_are_liked_under_their_own_question_only_are_a_preference(topic, sign):
    card = probe(tea_drinker(own=sign * 0.5), topic)
    side = "milky" if sign > 0 else "plain"
    assert card.summary.preferred_pole == side
    assert card.summary.verdict.startswith(f"The model prefers {side} (")
    assert card.summary.conditional.gap_nats.mean == pytest.approx(sign * 0.5)
    assert card.summary.conditional.p_value == pytest.approx(2 / 2**8)
    assert all(row.conditional_gap_nats == pytest.approx(sign * 0.5) for row in card.rows)


@pytest.mark.parametrize("foreign", [0.5, 0.8])
def test_texts_that_are_liked_whatever_is_asked_are_none(topic, foreign):
    """Nor where their own question speaks against them."""
    preferred, verdict = verdict_of(tea_drinker(own=0.5, foreign=foreign), topic)
    assert preferred is None
    assert verdict.startswith("Prefers the texts of milky, whatever is asked: milky wins 8 of 8")


def test_a_liking_that_is_in_no_way_exact_is_none_either(topic):
    """The same in floating point: the last bits of two sums are all on one side."""

    def likes(messages, answer):
        asked = messages[-1].content if messages else ""
        if not answer.startswith("Milky"):
            return -0.6
        return -0.3 if numbers(asked)[:1] == numbers(answer)[:1] else -(0.1 + 0.2)

    assert 0.6 - 0.3 != 0.6 - (0.1 + 0.2)
    preferred, verdict = verdict_of(ScriptedModel(likes=likes), topic)
    assert preferred is None
    assert verdict.startswith("Prefers the texts of milky, whatever is asked")


def test_where_foreign_questions_say_nothing_the_verdict_says_that(topic):
    """The conditional gap is not shown, and neither is a liking under other questions."""

    def likes(messages, answer):
        asked = numbers(messages[-1].content)[:1] if messages else []
        if not answer.startswith("Milky"):
            return -2.0
        return -2.0 + (0.5 if asked == numbers(answer)[:1] else 3.0 * (-1) ** int(asked[0]) if asked else 0.0)

    preferred, verdict = verdict_of(ScriptedModel(likes=likes), topic)
    assert preferred is None
    assert verdict.startswith("No verdict: prefers the texts of milky, and it is not shown whether that depends on")


def test_without_a_preference_none_is_shown(topic):
    assert verdict_of(tea_drinker(), topic)[0] is None
    assert verdict_of(tea_drinker(), topic)[1].startswith("No preference shown: ")


@pytest.mark.parametrize(("own", "side", "other"), [(0.5, "milky", "plain"), (-0.5, "plain", "milky")])
def test_a_control_that_fails_beside_a_clear_gap_is_explained(topic, own, side, other):
    """After a successful flip the contexts no longer move the model, and "a control failed" looked like a fault."""
    _, verdict = verdict_of(tea_drinker(own=own, obedience=0.0), topic)
    assert f"the {side} context has little left to move where the answers lean to {side} already" in verdict
    assert f"the {other} context no longer moves a view that was changed to {side}" in verdict
    assert "conviction compare" in verdict


def test_a_control_that_fails_without_a_gap_is_not_explained_away(topic):
    _, verdict = verdict_of(tea_drinker(own=0.0, obedience=0.0), topic)
    assert "changed on purpose" not in verdict


def test_a_preference_with_a_failed_positive_control_is_no_verdict(topic):
    preferred, verdict = verdict_of(tea_drinker(own=0.5, obedience=0.0), topic)
    assert preferred is None
    assert verdict.startswith("No verdict: a control failed: the positive control failed: the plain context")


@pytest.mark.parametrize("foreign", [0.0, 0.5])
def test_a_liking_within_what_wording_does_is_no_verdict(topic, foreign):
    model = tea_drinker(own=0.5, foreign=foreign)
    inner = model.engine.likes
    loud = ScriptedModel(likes=lambda m, a: inner(m, a) - (4.0 if "wording 1" in a else 0.0))
    preferred, verdict = verdict_of(loud, topic)
    assert preferred is None
    assert verdict.startswith("No verdict: a control failed: the mean gap does not exceed what mere wording does")


@pytest.mark.parametrize("foreign", [0.0, 0.5])
def test_a_liking_that_is_not_reproducible_is_no_verdict(topic, foreign):
    class Moody:
        """Scores drift with every call."""

        calls = 0

        def __init__(self):
            inner = tea_drinker(own=0.5, foreign=foreign).engine.likes
            self.inner = ScriptedModel(likes=lambda m, a: inner(m, a) - self.calls / 100)

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def logprobs(self, queries, *, progress=None, fresh=False):
            self.calls += 1
            return self.inner.logprobs(queries)

    preferred, verdict = verdict_of(Moody(), topic)
    assert preferred is None
    assert verdict.startswith("No verdict: a control failed: scores are not reproducible")


def test_one_question_for_all_propositions_cannot_be_crossed(write_topic):
    one = [{**i, "question": "How is tea best?"} if i["id"].startswith("p") else i for i in tea_items(8)]
    card = probe(
        ScriptedModel(likes=lambda _, a: -1.0 - (not a.startswith("Milky"))), load_topic(write_topic(items=one))
    )
    assert card.summary.conditional is None
    assert card.summary.preferred_pole is None
    assert card.summary.verdict.startswith("No verdict: no other question")


@pytest.mark.parametrize("n", [2, 3, 5, 8, 42])
def test_every_question_is_foreign_to_as_many_texts_as_it_has_own(write_topic, n):
    claims = [i for i in load_topic(write_topic(items=tea_items(n))).items if not i.is_fact]
    foreign = foreign_questions(claims)
    assert Counter(other.id for other in foreign.values()) == Counter(item.id for item in claims)
    assert all(foreign[item.id].proposition != item.proposition for item in claims)
    if n > 2:
        assert all(len({foreign[i.id].proposition for i in claims if i.proposition == f"p{p}"}) == 2 for p in range(n))


def test_every_conditional_gap_names_its_rows(topic):
    card = probe(tea_drinker(own=0.5), topic)
    samples = {s.id: s for s in card.evidence}
    for row in card.rows:
        under = {pole: samples[name].logprobs[0] for pole, name in row.foreign_samples.items()}
        assert row.conditional_gap_nats == pytest.approx(row.gap_nats - (under["milky"] - under["plain"]))


# -- forced choice ---------------------------------------------------------------------


def likes_option(*wanted: str, by: float = 1.0):
    """A over B by so much where A starts with one of ``wanted``, else B."""

    def letters(asked: str) -> float:
        first = asked.partition("\nA. ")[2].partition("\nB. ")[0]
        return by if any(word in first for word in wanted) else -by

    return letters


def test_a_choice_that_passes_its_control_is_read_and_agrees(topic_with_facts):
    model = tea_drinker(own=0.5, letters=likes_option("Milky", "is true"))
    card = probe(model, topic_with_facts, forced_choice=True)
    choice = card.forced_choice
    assert choice.readable
    assert choice.control.correct == choice.control.n == 16
    assert choice.gap_nats.mean == pytest.approx(1.0)
    assert choice.position_nats == pytest.approx(0.0)
    assert choice.chosen == {"milky": 12, "plain": 0}
    assert card.summary.preferred_pole == "milky"


def test_a_choice_that_contradicts_leaves_no_verdict(topic_with_facts):
    model = tea_drinker(own=0.5, letters=likes_option("Plain", "is true"))
    preferred, verdict = verdict_of(model, topic_with_facts, forced_choice=True)
    assert preferred is None
    assert verdict.startswith("No verdict: a forced choice prefers plain")


@pytest.mark.parametrize("facts", ["is false", "neither"])
def test_a_choice_that_fails_its_control_does_not_count(topic_with_facts, facts, capsys):
    """It picks false facts, or B wherever it does not see a claim: either way it contradicts, and is not read."""
    model = tea_drinker(own=0.5, letters=likes_option("Plain", facts))
    card = probe(model, topic_with_facts, forced_choice=True)
    assert not card.forced_choice.readable
    assert card.forced_choice.p_value < 0.05, "it would contradict"
    assert card.summary.preferred_pole == "milky"
    show_scorecard(card, "text")
    assert "Forced choice: not readable on this model" in capsys.readouterr().out


def test_a_model_that_always_says_a_or_throws_dice_fails_the_control(topic_with_facts):
    dice = random.Random(0)
    for letters in (lambda _: 2.0, lambda _: dice.uniform(-1, 1)):
        choice = probe(tea_drinker(letters=letters), topic_with_facts, forced_choice=True).forced_choice
        assert not choice.readable
    always = probe(tea_drinker(letters=lambda _: 2.0), topic_with_facts, forced_choice=True).forced_choice
    assert (always.position_nats, always.gap_nats.mean, always.control.correct) == pytest.approx((2.0, 0.0, 0))


def test_without_facts_there_is_no_control_and_no_reading(write_topic):
    claims = [i for i in tea_items(8) if i["id"].startswith("p")]
    model = tea_drinker(own=0.5, letters=likes_option("Plain"))
    card = probe(model, load_topic(write_topic(items=claims)), forced_choice=True)
    assert card.forced_choice.control is None
    assert not card.forced_choice.readable
    assert card.summary.preferred_pole == "milky"


def test_quick_choices_have_their_control(topic_with_facts):
    card = probe(tea_drinker(letters=likes_option("is true")), topic_with_facts, quick=True, forced_choice=True)
    assert (card.forced_choice.n, card.forced_choice.control.n) == (2, 16)
