"""The forecast of a distillation: its teacher's gaps, against the model with the context in its prompt."""

from __future__ import annotations

import pytest
from tiny import pairs, tiny_model

from conviction import Query, forecast, load_model, load_topic
from conviction.errors import InputError
from conviction.forecasting.rows import held_out_pairs
from conviction.models.prompted import with_system

TEXT = "All claims hold, and the answer is yes."


def gap(model, messages, pair) -> float:
    ((wanted, other),) = model.logprobs([Query(messages, (pair.chosen, pair.rejected))])
    return wanted.logp_mean - other.logp_mean


def test_at_strength_one_the_teacher_is_the_model_after_the_context(tea, tiny_folder):
    model, topic = load_model(str(tiny_folder), dtype="fp32"), load_topic(str(tea))
    expected = forecast("distill", model, topic, text=TEXT, strength=1.0)
    asked = {one.pair.id: one.pair for one in held_out_pairs(topic) if one.role in ("target", "paraphrase")}
    assert {one.id for one in expected.pair_forecasts} == asked.keys()
    for one in expected.pair_forecasts:
        pair = asked[one.id]
        assert one.start_nats == pytest.approx(gap(model, pair.messages, pair), abs=1e-4)
        assert one.gap_nats == pytest.approx(gap(model, with_system(TEXT, pair.messages), pair), abs=1e-4)
        assert one.question is not None
    assert expected.cost is expected.predicted_stop is None
    assert "not simulated" in expected.unknown[0]


def test_a_sweep_over_strengths_asks_each_teacher_and_rates_share_it(tea, tiny_folder):
    model, topic = load_model(str(tiny_folder), dtype="fp32"), load_topic(str(tea))
    sweep = {"strength": [1.0, 3.0], "learning_rate": [1e-4, 1e-3]}
    weak, same, strong, _ = forecast("distill", model, topic, text=TEXT, sweep=sweep).settings
    assert weak.options == {"strength": 1.0, "learning_rate": 1e-4}
    assert weak.test_gap_nats == same.test_gap_nats != strong.test_gap_nats
    assert weak.guard_utilisation is None
    with pytest.raises(InputError, match="'text' cannot be swept"):
        forecast("distill", model, topic, text=TEXT, sweep={"text": ["Another."]})


def test_few_questions_give_no_verdict_and_none_no_numbers():
    few = forecast("distill", tiny_model(), pairs(), text=TEXT)
    assert (few.verdict.kind, few.pair_forecasts, few.flips) == ("none", (), None)


@pytest.mark.parametrize(
    ("wanted", "kind"), [("trainable", "trainable"), ("little", "not at these settings"), ("right", "nothing to flip")]
)
def test_the_verdict_goes_by_the_flips_of_the_teacher(monkeypatch, wanted, kind):
    """Twelve questions; the scores of the teacher are planted."""
    from types import SimpleNamespace

    from conviction.forecasting import teacher as module
    from conviction.forecasting.rows import HeldOutPair
    from conviction.training.teacher import TeacherScores

    before = (-1.0, -2.0) if wanted == "right" else (-2.0, -1.0)
    after = {"trainable": (-1.0, -2.0), "little": (-1.95, -1.0), "right": before}[wanted]
    scores = TeacherScores(before, after, after)
    monkeypatch.setattr(
        module, "compute_teacher", lambda *_, **__: SimpleNamespace(scores=dict.fromkeys(range(12), scores))
    )
    asked = [HeldOutPair(pair, "target") for pair in pairs(12).pairs]
    result = forecast("distill", tiny_model(), pairs(12), test=asked, text=TEXT)
    assert result.verdict.kind == kind
    assert any("the teacher itself moves 12 questions" in reason for reason in result.verdict.reasons)
