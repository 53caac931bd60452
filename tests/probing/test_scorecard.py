"""``probe`` on scripted models: every number can be worked out by hand."""

from __future__ import annotations

import json
import zlib

import pytest
from tea import tea_items

from conviction import ScriptedModel, load_topic, probe
from conviction.core.protocols import AnswerScore
from conviction.errors import InputError
from conviction.probing.controls import measure_rescoring

KEYS = {"model", "topic", "target", "rows", "summary", "controls", "provenance"}


def partisan(messages, answer: str) -> float:
    """Likes milky tea by 0.5 nats per token when asked something; obeys a context by ±1."""
    if not messages:
        return -3.0
    milky = answer.startswith("Milky")
    asked = messages[-1].content != ""
    system = messages[0].content if messages[0].role == "system" else ""
    pull = {"Tea is best milky.": 1.0, "Tea is best plain.": -1.0}.get(system, 0.0)
    wording = 0.01 if "wording 1" in answer else 0.0
    liking = (0.5 if asked else 0.2) + pull
    return -2.0 + (liking if milky else 0.0) + wording + (0.3 if "true" in answer else 0.0)


@pytest.fixture
def topic(write_topic):
    return load_topic(write_topic(items=tea_items(8)))


def test_gap_wins_and_pmi_are_what_the_model_was_told(topic):
    card = probe(ScriptedModel(likes=partisan), topic)
    assert card.summary.gap_nats.mean == pytest.approx(0.5)
    assert card.summary.pmi_gap_nats == pytest.approx(0.3)
    assert card.summary.wins == {"milky": 8, "plain": 0, "tie": 0}
    assert card.summary.n == 8  # propositions, not items
    assert len(card.rows) == 16
    assert card.summary.conditional.gap_nats.mean == 0.0
    assert card.summary.conditional.foreign_gap_nats.mean == pytest.approx(0.5)
    assert card.controls.positive["milky"].shift_nats.mean == pytest.approx(1.0)
    assert card.controls.positive["plain"].passed
    assert card.controls.wording_null.item_q95_nats == pytest.approx(0.01)
    assert card.controls.facts["neighbour"].prefers_true == 1
    assert [w.partition(":")[0] for w in card.warnings] == ["most of the gap does not depend on the question"]


def test_swapped_poles_negate_everything(topic):
    model = ScriptedModel(likes=partisan)
    card, swapped = probe(model, topic), probe(model, topic.swapped())
    assert [r.gap_nats for r in swapped.rows] == [-r.gap_nats for r in card.rows]
    assert swapped.summary.gap_nats.mean == -card.summary.gap_nats.mean
    assert [r.winner for r in swapped.rows] == [r.winner for r in card.rows]


def test_with_five_propositions_there_is_no_verdict(write_topic):
    card = probe(ScriptedModel(likes=partisan), load_topic(write_topic(items=tea_items(5))))
    assert card.summary.preferred_pole is None
    assert card.summary.verdict.startswith("No verdict: 5 propositions cannot reach two-sided p < 0.05")
    assert card.summary.smallest_p == 0.0625


def test_a_sign_change_after_pmi_is_a_warning(topic):
    def likes(messages, answer):
        return (
            -2.0
            + (0.2 if answer.startswith("Milky") else 0.0)
            + (0.5 if answer.startswith("Milky") and messages and messages[-1].content == "" else 0.0)
        )

    card = probe(ScriptedModel(likes=likes), topic)
    assert card.controls.pmi_sign_change
    assert any("sign changes" in w for w in card.warnings)


def test_a_gap_that_is_only_text_likelihood_is_a_warning(topic):
    card = probe(ScriptedModel(likes=lambda _, a: -1.5 if a.startswith("Milky") else -2.0), topic)
    assert card.summary.pmi_gap_nats == pytest.approx(0.0)
    assert any("less than half of the gap" in w for w in card.warnings)
    assert any("positive control failed" in w for w in card.warnings)


def test_wording_that_matters_more_than_the_pole_is_a_warning(topic):
    def likes(messages, answer):
        return -2.0 + (0.05 if answer.startswith("Milky") else 0.0) - (1.0 if "wording 1" in answer else 0.0)

    card = probe(ScriptedModel(likes=likes), topic)
    assert not card.controls.wording_null.exceeded
    assert any("mere" in w for w in card.warnings)


def test_a_model_that_answers_differently_when_asked_again_is_found_out(topic):
    class Moody:
        """Scores drift with every query."""

        id, calls = "moody", 0

        def __init__(self):
            self.inner = ScriptedModel(likes=lambda _, answer: -1 - self.calls * sum(map(ord, answer)) / 1e6)

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def logprobs(self, queries, *, progress=None, fresh=False):
            self.calls += 1
            return self.inner.logprobs(queries)

    card = probe(Moody(), topic)
    assert not card.controls.rescored.passed
    assert any("not reproducible" in w for w in card.warnings)


def noise(messages, answer: str) -> float:
    """A hash of all that is read: reproducible, and nothing else."""
    text = "\0".join([*(m.content for m in messages), answer])
    return -2.0 + zlib.crc32(text.encode()) / 2**32


def test_a_scorer_that_is_hash_noise_fails_every_control(topic):
    """What means nothing must not look like a preference."""
    card = probe(ScriptedModel(likes=noise), topic)
    controls = card.controls
    assert card.summary.preferred_pole is None
    assert not controls.wording_null.exceeded
    assert not any(control.passed for control in controls.positive.values())
    assert controls.rescored.passed, "it is the one thing that hash noise can do"
    assert sum("positive control failed" in warning for warning in card.warnings) == 2


def test_templates_report_the_spread(topic):
    def likes(messages, answer):
        return -2.0 + (0.4 if answer.startswith("Milky") else 0.0) * (-1 if "Please" in messages[-1].content else 1)

    spread = probe(ScriptedModel(likes=likes), topic, templates=True).controls.templates
    assert len(spread.gap_nats) >= 6
    assert (spread.low, spread.high) == pytest.approx((-0.4, 0.4))
    assert spread.sign_agreement == pytest.approx(6 / 7)


def test_quick_asks_only_quick_items(topic):
    card = probe(ScriptedModel(likes=partisan), topic, quick=True)
    assert [r.item for r in card.rows] == ["p0-0", "p1-0"]
    assert not card.controls.facts


def test_quick_without_quick_items_is_an_error(write_topic):
    items = [{**i, "tags": []} for i in tea_items(2)]
    with pytest.raises(InputError, match="no item tagged 'quick'"):
        probe(ScriptedModel(), load_topic(write_topic(items=items)), quick=True)


def test_unmatched_answers_are_named(write_topic):
    items = tea_items(3)
    items[0]["answers"]["plain"] += " And then perhaps some more. And more."
    result = probe(ScriptedModel(), load_topic(write_topic(items=items))).controls.matching
    assert {f.code for f in result} == {"token-length", "sentences", "hedging"}
    assert all(f.items == ("p0-0",) for f in result)


def test_health_reads_neutral_text_and_writes_answers(topic):
    model = ScriptedModel(likes=lambda *_: -2.5, writes=lambda _: "- . " * 50)
    health = probe(model, topic, health=True).health
    assert health.neutral_logp_mean == pytest.approx(-2.5)
    assert health.degeneration.non_alphanumeric_share == 1.0


def test_json_has_the_promised_keys_and_names_its_evidence(topic):
    card = probe(ScriptedModel(likes=partisan), topic, health=True)
    data = json.loads(json.dumps(card.model_dump(mode="json"), allow_nan=False))
    assert set(data) >= KEYS
    assert {"item", "question", "logp_mean", "tokens", "gap_nats", "winner"} <= set(data["rows"][0])
    assert {"n", "wins", "gap_nats", "p_value", "pmi_gap_nats", "verdict"} <= set(data["summary"])
    samples = {s.id: s for s in card.evidence}
    assert len(samples) == len(card.evidence)
    for row in card.rows:
        for pole, name in row.samples.items():
            sample = samples[name]
            assert row.logp_mean[pole] == pytest.approx(sum(sample.logprobs) / len(sample.logprobs), abs=1e-6)
    assert set(card.health.samples) <= set(samples)
    assert "evidence" not in data


@pytest.mark.parametrize(
    ("dtype", "forward", "apart", "passed"),
    [
        ("float32", 1e-7, 2e-6, True),
        ("float32", 1e-7, 1e-3, False),
        ("bfloat16", 0.042, 0.028, True),  # SmolLM2-135M on all of `obesity`
        ("bfloat16", 0.026, 0.012, True),  # and on its quick questions
        ("bfloat16", 0.011, 0.005, True),  # Gemma-3-270m on these
        ("bfloat16", 0.042, 0.1, False),
        ("bfloat16", None, 0.03, False),
    ],
)
def test_what_asking_again_may_change_depends_on_the_rounding_that_was_measured(dtype, forward, apart, passed):
    key = ("plain", "i", "a")
    own = {"rows": 3, "longest_row_tokens": 9, "max_difference_nats": 0.2, "accepted": True}
    described = {"dtype": dtype}
    if forward is not None:
        described["rescored"] = {**own, "mean_difference_nats": forward}
    one, other = (AnswerScore((1, 2), (-2.0, -2.0 + x)) for x in (0.0, 2 * apart))
    assert measure_rescoring({key: one}, {key: other}, described).passed == passed


def test_rounding_that_was_not_accepted_excuses_nothing():
    key = ("plain", "i", "a")
    own = {"rows": 3, "longest_row_tokens": 9, "max_difference_nats": 2.0, "mean_difference_nats": 0.5}
    described = {"dtype": "bfloat16", "rescored": {**own, "accepted": False}}
    one, other = (AnswerScore((1,), (x,)) for x in (-2.0, -2.1))
    assert not measure_rescoring({key: one}, {key: other}, described).passed
