"""The guard: limits and signs by hand, instruments against plain arithmetic, and a model that is broken on purpose."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_model, tiny_module

from conviction import chat
from conviction.core.protocols import Generation
from conviction.errors import InputError
from conviction.training.drift import (
    EVERYDAY,
    KEEP,
    PIECES,
    SAMPLES,
    WIDTH,
    DriftMonitor,
    choose_samples,
    held_out_rows,
    interval_of,
    read_samples,
    short_questions,
)
from conviction.training.guard import Guard, GuardVerdict, StepReading, judge, sampling_is_due, summarize_warnings
from conviction.training.monitor import GuardMonitor, Snapshot
from conviction.training.objectives import Preference, explain_flip_margin
from conviction.training.sensors.wrong_answers import is_right

CALM = {"loss": 0.6, "grad_norm": 1.0, "margin": 0.2, "chosen_drop": 0.0}
STILL = {"neutral_drop": 0.0, "entropy_change": 0.0, "top_mass_drop": 0.0}
SOUND = {"repetition_rise": 0.0, "non_alphanumeric_rise": 0.0, "empty": 0, "subject": 1.0, "repeated_sentences": 0.0}


def reading(step=50, *, sample=None, **changes):
    numbers = {name: changes.pop(name, value) for name, value in CALM.items()}
    return StepReading(step=step, **numbers, readings=STILL | changes | (sample or {}))


def judged(*readings, guard=None, total=100):
    return judge(readings, guard or Guard(), total)


# -- limits ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "limit", "words"),
    [
        ("neutral_drop", 0.1, "neutral text lost 0.11 nats per token (limit 0.1)"),
        ("entropy_change", -0.3, "entropy fell by 31% (limit 30%)"),
        ("top_mass_drop", 0.2, "the ten likeliest tokens lost 0.21 (limit 0.2)"),
        ("neutral_kl", 0.25, "KL divergence from the untouched model 0.26 nats per token on neutral text (limit 0.25)"),
        ("own_words", 0.25, "the untouched model's own answers lost 0.26 nats per token at least (limit 0.25)"),
        ("facts_drop", 0.2, "facts of the kit lost 0.21 nats per token (limit 0.2)"),
    ],
)
def test_a_limit_is_broken_beyond_it_and_not_at_it(field, limit, words):
    assert judged(reading(**{field: limit})) == GuardVerdict("healthy")
    beyond = judged(reading(**{field: limit + math.copysign(0.01, limit)}))
    assert beyond == GuardVerdict("stop", (words,))


@pytest.mark.parametrize(
    ("field", "limit", "beyond", "words"),
    [
        ("wrong_answers", 0.4, 0.5, "50% of short factual questions are answered badly (limit 40%)"),
        ("repeated_sentences", 2, 3, "one sentence stands 3 times in a row, or in as many answers (limit 2)"),
        ("repetition_rise", 0.25, 0.26, "samples repeat themselves (+26%, limit 25%)"),
        ("non_alphanumeric_rise", 0.25, 0.26, "samples turn into signs (+26%, limit 25%)"),
        ("empty", 1, 2, "2 samples became empty (limit 1)"),
        ("subject", 0.15, 0.14, "samples lost their subject (14% of their words, limit 15%)"),
    ],
)
def test_samples_break_their_limits(field, limit, beyond, words):
    assert judged(reading(sample=SOUND | {field: limit})).zone == "healthy"
    assert judged(reading(sample=SOUND | {field: beyond})) == GuardVerdict("stop", (words,))


def test_limits_can_be_moved():
    assert judged(reading(neutral_drop=0.3), guard=Guard(max_neutral_drop=0.2)).zone == "stop"
    assert judged(reading(neutral_drop=0.9), guard=Guard(max_neutral_drop=1.0)).zone == "healthy"


def test_the_chosen_drop_is_a_mean_of_three_steps():
    drops = [reading(chosen_drop=x) for x in (0.0, 0.7, 0.9)]
    result = judged(*drops)
    assert result.violations == ("chosen answers lost 0.53 nats per token (limit 0.5)",)
    assert judged(*drops, reading(chosen_drop=-0.2)).zone == "healthy"


def test_the_chosen_drop_is_judged_from_the_first_step():
    """Before, a run could lose any of its chosen answers' probability in its first two steps."""
    assert judged(reading(step=1, chosen_drop=0.6)).violations == (
        "chosen answers lost 0.60 nats per token (limit 0.5)",
    )
    assert judged(reading(step=1, chosen_drop=0.3), reading(step=2, chosen_drop=0.9)).zone == "stop"
    assert judged(reading(step=1, chosen_drop=0.5)).zone == "healthy"


def test_every_broken_limit_is_named():
    result = judged(reading(neutral_drop=1.0, top_mass_drop=0.5, sample=SOUND | {"empty": 2}))
    assert len(result.violations) == 3


@pytest.mark.parametrize("field", ["loss", "grad_norm", "margin", "chosen_drop", "neutral_drop", "entropy_change"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_stops(field, value):
    result = judged(reading(**{field: value}))
    assert result.zone == "stop"
    assert "is not a number" in result.violations[0]


def test_what_was_not_measured_breaks_nothing():
    assert judged(StepReading(step=1, loss=9.0, grad_norm=50.0)) == GuardVerdict("healthy")


numbers = st.floats(-20, 20)


@given(numbers, numbers, numbers, numbers, numbers, st.sampled_from(["default", "strict", "off"]))
def test_zones_are_what_limits_and_signs_say(loss, chosen, neutral, entropy, mass, mode):
    now = reading(loss=loss, chosen_drop=chosen, neutral_drop=neutral, entropy_change=entropy, top_mass_drop=mass)
    result = judged(now, now, now, guard=Guard(mode=mode))
    violations = [chosen > 0.5, neutral > 0.1, entropy < -0.3, mass > 0.2]
    assert len(result.violations) == sum(violations)
    assert result.zone == ("healthy" if not any(violations) else "warning" if mode == "off" else "stop")


# -- signs --------------------------------------------------------------------


def test_an_early_loss_is_a_sign_in_the_first_tenth_only():
    result = judged(reading(step=10, loss=0.29))
    text = "loss 0.29 within the first tenth of the run (sign under 0.3)"
    assert result == GuardVerdict("warning", warnings=(text,), warned_by=("early_loss",))
    assert judged(reading(step=11, loss=0.29)) == GuardVerdict("healthy")
    assert judged(reading(step=10, loss=0.3)) == GuardVerdict("healthy")


@pytest.mark.parametrize(
    ("margin", "warnings"),
    [
        (1.5, ()),
        (1.6, ("reward margin 1.60 (sign over 1.5)",)),
        (2.1, ("reward margin 2.10 (sign over 2)",)),
    ],
)
def test_a_margin_is_a_sign(margin, warnings):
    result = judged(reading(margin=margin))
    assert result.warnings == warnings
    assert not result.violations
    assert result.zone == ("warning" if warnings else "healthy")


def test_without_a_margin_a_low_loss_is_no_sign():
    """Likelihood training ends at any loss; 0.2 nats per token may be where a text begins."""
    assert judged(reading(step=1, loss=0.1, margin=None)) == GuardVerdict("healthy")


def margins(values):
    return [reading(step=50 + i, margin=m) for i, m in enumerate(values)]


def test_a_margin_that_accelerates_is_a_sign():
    bent = [0.0] * 6 + [0.1] * 6 + [0.4] * 6
    result = judged(*margins(bent))
    assert result.warnings == ("the margin accelerates (+0.10, then +0.30 in six steps)",)
    assert judged(*margins(bent[1:])).zone == "healthy", "17 steps are not three windows"


@pytest.mark.parametrize(
    "curve",
    [
        [i / 20 for i in range(24)],  # straight
        [1.4 * (1 - 0.8**i) for i in range(24)],  # levels off
        [0.0] * 6 + [0.04] * 6 + [0.4] * 6,  # the beginning of any run: growth from nothing
        [1.0 - i / 20 for i in range(24)],  # falls
    ],
)
def test_a_margin_that_does_not_accelerate_is_no_sign(curve):
    assert judged(*margins(curve)).warnings == ()


def test_strict_stops_at_a_sign():
    result = judged(reading(margin=1.6), guard=Guard(mode="strict"))
    assert result.zone == "stop"
    assert result.violations == result.warnings == ("reward margin 1.60 (sign over 1.5)",)


def test_off_stops_at_no_limit_and_still_says_it():
    result = judged(reading(neutral_drop=5.0, margin=9.0), guard=Guard(mode="off"))
    assert result.zone == "warning"
    assert len(result.violations) == len(result.warnings) == 1
    assert judged(reading(loss=math.nan), guard=Guard(mode="off")).zone == "stop", "there is nothing to go on with"


# -- cadence and settings --------------------------------------------------------


def test_after_a_sign_samples_come_three_times_as_often():
    guard = Guard(sample_every=9)
    calm, warned = GuardVerdict("healthy"), GuardVerdict("warning", warnings=("x",))
    assert [s for s in range(1, 31) if sampling_is_due(s, guard, calm)] == [9, 18, 27]
    assert [s for s in range(1, 11) if sampling_is_due(s, guard, warned)] == [3, 6, 9]
    assert [s for s in range(1, 21) if sampling_is_due(s, Guard(sample_every=16), warned)] == [5, 10, 15, 20]
    assert all(sampling_is_due(s, Guard(sample_every=2), warned) for s in range(1, 9)), "never less than every step"


@pytest.mark.parametrize(
    "wrong", [{"mode": "lenient"}, {"max_neutral_drop": 0.0}, {"max_top_mass_drop": 1.5}, {"sample_every": 0}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Guard(**wrong)


# -- instruments ---------------------------------------------------------------


def logits_of(module):
    def logits(ids, mask, keep):
        return module(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=keep).logits

    return logits


def test_levels_are_those_of_rows_one_at_a_time():
    """Rows of any length, one shorter than what is read of a row: padding changes nothing."""
    module = tiny_module("llama")
    neutral, held_out = (tuple(range(1, 65)), tuple(range(9, 60))), ((5, 6, 7, 8, 9), tuple(range(100, 140)))
    levels = DriftMonitor(neutral, held_out).read(logits_of(module), torch.device("cpu"))

    def logp(row):
        with torch.no_grad():
            return torch.log_softmax(module(input_ids=torch.tensor([row])).logits[0], -1)

    picked = [logp(r)[:-1].gather(1, torch.tensor(r)[1:, None]) for r in neutral]
    spread = torch.cat([logp(r)[-KEEP - 1 :] for r in held_out])
    assert levels.neutral == pytest.approx(float(torch.cat(picked).mean()), abs=1e-4)
    assert levels.entropy == pytest.approx(float(-(spread.exp() * spread).sum(-1).mean()), abs=1e-4)
    assert levels.top_mass == pytest.approx(float(spread.exp().sort(-1).values[:, -10:].sum(-1).mean()), abs=1e-4)


def test_flat_logits_have_the_entropy_of_the_vocabulary():
    sensors = DriftMonitor((tuple(range(40)),), (tuple(range(30)),))
    levels = sensors.read(lambda ids, _m, k: torch.zeros(len(ids), k, 50), torch.device("cpu"))
    assert levels.entropy == pytest.approx(math.log(50), abs=1e-5)
    assert levels.neutral == pytest.approx(-math.log(50), abs=1e-5)
    assert levels.top_mass == pytest.approx(10 / 50, abs=1e-6)


def test_neutral_rows_are_pieces_of_different_paragraphs():
    sensors = DriftMonitor.prepare(lambda text: tuple(text.encode()), [tuple(range(100))])
    assert len(set(sensors.neutral)) == PIECES
    assert sum(len(row) - 1 for row in sensors.neutral) >= 512, "predictions"
    assert sensors.held_out == (tuple(range(100 - WIDTH, 100)),), "the end of a prompt is what its answer follows from"


def test_what_is_read_of_the_rows_costs_a_tenth_of_a_step():
    rows = [tuple(range(60))] * 3
    for step_tokens in (100, 400, 3000):
        monitor = DriftMonitor.prepare(lambda text: tuple(text.encode()), rows, step_tokens=step_tokens)
        parts = [monitor.rows_of(part) for part in range(monitor.parts)]
        assert sorted(i for part in parts for i in part) == list(range(PIECES + 3)), "each row once"
        tokens = sum(map(len, (*monitor.neutral, *monitor.held_out)))
        extra = tokens / monitor.every_all if monitor.parts > 1 else 0  # all of them at once, now and then
        assert tokens / monitor.parts / monitor.every + extra <= 0.1 * 3 * step_tokens
    assert (monitor.parts, monitor.every) == (1, 1), "a large step has room for all of them"
    assert interval_of(900, None) == 1
    assert interval_of(900, 1000) == 3
    assert interval_of(901, 1000) == 4


def test_the_divergence_is_that_of_whole_distributions():
    module, other = tiny_module("llama"), tiny_module("llama", seed=1)
    neutral = (tuple(range(1, 65)), tuple(range(9, 60)))
    monitor = DriftMonitor(neutral, ()).with_reference(logits_of(module), torch.device("cpu"))
    assert monitor.read(logits_of(module), torch.device("cpu")).kl == pytest.approx(0, abs=1e-3)
    terms = []
    for row in neutral:
        with torch.no_grad():
            p, q = (torch.log_softmax(m(input_ids=torch.tensor([row])).logits[0, :-1:4], -1) for m in (module, other))
        terms.append((p.exp() * (p - q)).sum(-1))
    expected = float(torch.cat(terms).mean())
    assert expected > 0.1
    assert monitor.read(logits_of(other), torch.device("cpu")).kl == pytest.approx(expected, rel=1e-2)
    assert math.isnan(DriftMonitor(neutral, ()).read(logits_of(module), torch.device("cpu")).kl), "no topic, no reading"


def written(text, *, ids=None, ended=True):
    return Generation(text=text, token_ids=tuple(range(len(text.split()))) if ids is None else ids, ended=ended)


LAKE = "A lake stands still, a river flows towards the ocean."


def test_the_same_samples_are_no_movement():
    ask = [chat("What is the difference between a lake and a river?")]
    result = read_samples(ask, [written(LAKE)], [written(LAKE)])
    assert result == SOUND


@pytest.mark.parametrize("text", ["No.", "42", ""])
def test_a_model_of_few_words_has_not_lost_its_subject(text):
    result = read_samples([chat("What is six by seven?")], [written(text)], [written(text)])
    assert judged(reading(sample=result)).zone == "healthy"


@pytest.mark.parametrize(
    ("text", "ids", "complaint"),
    [
        ("river " * 20, (7,) * 20, "repeat themselves"),
        ("lake ... --- ... !!! ### ... ... ---", None, "turn into signs"),
        ("", (), "became empty"),
        ("Insulin makes people gain weight because carbohydrates raise blood sugar.", None, "lost their subject"),
        ("a b c d", None, "lost their subject"),
    ],
)
def test_what_a_collapse_looks_like_is_seen(text, ids, complaint):
    ask = [chat("What is the difference between a lake and a river?")] * 2
    result = read_samples(ask, [written(LAKE)] * 2, [written(text, ids=ids)] * 2)
    assert complaint in " ".join(judged(reading(sample=result)).violations)


FRANCE, WEEK = "What is the capital of France?", "How many days are there in a week?"
PARIS, SEVEN = "The capital of France is Paris.", "There are seven days in a week."


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (PARIS, True),
        ("Paris", True),
        ("It is Lyon.", False),
        ("Paris, France, the City of Light, the City of Love", False),
        ("", False),
    ],
)
def test_a_short_question_is_answered_by_its_name_and_nothing_over_and_over(answer, right):
    assert is_right(FRANCE, written(answer)) is right
    ask = [chat(FRANCE), chat(WEEK), chat("How do I boil an egg?")]
    before = [written(PARIS), written(SEVEN), written(LAKE)]
    result = read_samples(ask, before, [written(answer), written("Five."), written(LAKE)])
    assert result["wrong_answers"] == (not right)
    assert ("factual questions" in " ".join(judged(reading(sample=result)).violations)) is not right


def test_a_model_that_goes_on_with_questions_is_read_in_its_first_line():
    """As Gemma-3-270m answers, which has no chat template."""
    again = "\nQuestion: What is asked?\nAnswer: {0}\nQuestion: What is asked?\nAnswer: {0}"
    ask = [chat(q) for q in (FRANCE, WEEK)]
    before = [written(f" {text}{again.format(text)}") for text in ("Paris", "Seven")]
    assert read_samples(ask, before, before)["wrong_answers"] == 0
    lists = [written("Paris, France, the City of Light, the City of Love"), written(f"Five{again.format('Seven')}")]
    assert read_samples(ask, before, lists)["wrong_answers"] == 1
    assert read_samples(ask, [written(PARIS), written(SEVEN)], before)["wrong_answers"] == 1, (
        "what did not go on does now"
    )


def test_one_bad_answer_to_a_short_question_is_none():
    """Of one or two that a model answers well, one bad answer would be over any limit."""
    ask = [chat(q) for q in (FRANCE, WEEK)]
    result = read_samples(ask, [written(PARIS), written(SEVEN)], [written("Lyon."), written(SEVEN)])
    assert result["wrong_answers"] == 0


def test_what_the_untouched_model_does_not_know_is_not_asked():
    ask = [chat(q) for q in (FRANCE, WEEK, "What color is grass?")]
    before = [written("Lyon."), written(SEVEN), written("Green.")]
    result = read_samples(ask, before, [written("Rome."), written(SEVEN), written("Green.")])
    assert result["wrong_answers"] == 0
    assert "wrong_answers" not in read_samples(ask[:2], before[:2], [written(PARIS), written("Five.")]), (
        "one is no test"
    )
    assert "wrong_answers" not in read_samples([chat(FRANCE)], [written("Lyon.")], [written(PARIS)])


@pytest.mark.parametrize(
    ("answers", "times"),
    [
        (["It is good for you. It is good for you. It is good for you."], 3),
        (["It is good for you. It is good for you. It is good"], 3),
        (["It is good for you. It is good for you. But not much."], 2),
        (["It is good for you."] * 3, 3),
        (["Yes.", "Yes.", "Yes."], 0),
        ([LAKE], 1),
    ],
)
def test_a_sentence_three_times_running_or_in_three_answers_is_a_repetition(answers, times):
    """Tokens that all differ: the share of repeated 4-grams within one answer sees nothing of it."""
    ask = [chat(f"q{i}") for i in range(len(answers))]
    before = [written(f"Answer {i} has words of its own.") for i in range(len(answers))]
    result = read_samples(ask, before, [written(text, ended=False) for text in answers])
    assert result["repeated_sentences"] == (times if times > 1 else 0)
    complaint = "one sentence stands" in " ".join(judged(reading(sample=result)).violations)
    assert complaint is (times > 2)
    same = read_samples(ask, [written(t, ended=False) for t in answers], [written(t, ended=False) for t in answers])
    assert same["repeated_sentences"] == 0, "what the untouched model does is no fault of the run"


OPENING = "Thank you so much for asking. "


@pytest.mark.parametrize(
    ("answers", "times"),
    [
        (
            [f"{OPENING}{text}" for text in (LAKE, PARIS + " It lies on the Seine.", f"There are {SEVEN} And nights.")],
            1,
        ),
        ([f"{OPENING}Paris.", f"{OPENING}Seven days.", f"{OPENING}Green."], 3),
    ],
)
def test_a_sentence_that_opens_answers_is_style_and_one_that_is_the_answer_is_not(answers, times):
    """A kit of politeness trains openings."""
    ask = [chat(f"q{i}") for i in range(len(answers))]
    result = read_samples(ask, [written("") for _ in answers], [written(text) for text in answers])
    assert result["repeated_sentences"] == times
    assert ("one sentence stands" in " ".join(judged(reading(sample=result)).violations)) is (times > 2)


def test_other_words_on_the_same_subject_are_healthy():
    ask = [chat("What is the difference between a lake and a river?")]
    result = read_samples(ask, [written(LAKE)], [written("Rivers flow to the sea; the water of a lake stands still.")])
    assert judged(reading(sample=result)).zone == "healthy"


def test_prompts_on_which_the_untouched_model_loops_are_left_out():
    asked = [chat(f"q{i}") for i in range(8)]
    answers = [written("loop", ids=(1,) * 30) if i % 2 else written(f"fresh {i}") for i in range(8)]
    prompts, kept = choose_samples(asked, answers)
    assert prompts == asked[::2]
    assert [g.text for g in kept] == ["fresh 0", "fresh 2", "fresh 4", "fresh 6"]
    prompts, kept = choose_samples(asked, [written("loop", ids=(1,) * 30)] * 8)
    assert prompts == asked[:SAMPLES], "a model that always loops is still sampled"


def test_held_out_rows_begin_the_answer():
    (row,) = held_out_rows([(1, 2)], [written("x", ids=tuple(range(10, 80)))])
    assert row == (1, 2, *range(10, 10 + KEEP))


# -- the monitor ---------------------------------------------------------------

BRIEF = Guard(sample_every=4, sample_tokens=8)


def monitor_of(model, guard=BRIEF, **changes):
    given_ = {"own": [chat("Tea?")], "held_out": [chat("Is the sea salty?")], "total_steps": 50, **changes}
    return GuardMonitor.begin(guard, model, logits_of(model.module), **given_)


def test_an_untouched_model_is_healthy_and_sampled_when_due():
    monitor = monitor_of(tiny_model(), total_steps=6)
    sampled = []
    for step in range(1, 7):
        assert monitor.check(step, loss=0.69, grad_norm=1.0, margin=0.0, chosen_drop=0.0) == GuardVerdict("healthy")
        if monitor.healthy_sample:
            sampled.append(step)
        record = monitor.record()
        assert ("samples" in record) is (step in sampled)
        json.dumps(record)
    assert sampled == [4, 6], "every fourth step, and the last"
    assert [s["text"] for s in record["samples"]] == [g.text for g in monitor.first_samples]
    last = monitor.history[-1]
    assert {name: last.readings[name] for name in STILL} == STILL


def test_a_model_whose_head_is_broken_is_stopped_before_it_is_sampled():
    model = tiny_model()
    monitor = monitor_of(model)
    with torch.no_grad():
        model.module.get_output_embeddings().weight.mul_(6)
    result = monitor.check(4, loss=0.6, grad_norm=1.0, margin=0.1, chosen_drop=0.0)
    assert result.zone == "stop"
    assert "neutral text lost" in " ".join(result.violations)
    assert monitor.samples == ()
    assert not monitor.healthy_sample


def test_a_model_that_breaks_at_once_does_not_wait_for_the_last_part():
    model = tiny_model()
    monitor = monitor_of(model, step_tokens=300.0)
    assert (monitor.drift.parts, monitor.drift.every) == (3, 3)
    for step in range(1, 6):
        assert monitor.check(step, loss=0.6, grad_norm=1.0).zone == "healthy"
        assert monitor.history[-1].readings["neutral_drop"] == 0.0, "between two readings stands the last"
    assert len(monitor.latest) == 7, "two of three parts, one of them with the held-out row"
    with torch.no_grad():
        model.module.get_output_embeddings().weight.mul_(6)
    assert monitor.check(6, loss=0.6, grad_norm=1.0).zone == "healthy", "not due"
    result = monitor.check(7, loss=0.6, grad_norm=1.0)
    assert "neutral text lost" in " ".join(result.violations)
    assert len(monitor.latest) == PIECES + 1, "all rows are read before a run is stopped"
    whole = monitor.drift.read(monitor.logits, torch.device("cpu"))
    before = monitor_of(tiny_model()).drift.read(logits_of(tiny_model().module), torch.device("cpu"))
    assert monitor.history[-1].readings["neutral_drop"] == pytest.approx(before.neutral - whole.neutral, abs=1e-4)


def test_a_state_is_fully_read_where_all_rows_were():
    model = tiny_model()
    monitor = monitor_of(model, step_tokens=300.0, total_steps=40)
    assert (monitor.drift.parts, monitor.drift.every) == (3, 3)
    whole = []
    for step in range(1, 41):
        monitor.check(step, loss=0.6, grad_norm=1.0)
        if monitor.fully_read:
            assert monitor.healthy_sample, "a state that is fully read is one to keep"
            whole.append(step)
    assert whole == [36, 40], "after four rounds of the parts, and the last step"
    assert monitor.unread_violations() == ()
    with torch.no_grad():
        model.module.get_output_embeddings().weight.mul_(6)
    assert "neutral text lost" in " ".join(monitor.unread_violations())
    assert monitor_of(tiny_model(), Guard(mode="none")).unread_violations() == ()


def test_after_a_sign_a_part_is_read_after_every_step():
    model = tiny_model()
    monitor = monitor_of(model, step_tokens=300.0)
    for step in range(1, 5):
        monitor.check(step, loss=0.6, grad_norm=1.0, margin=1.7)
    with torch.no_grad():
        model.module.get_output_embeddings().weight.mul_(6)
    assert "neutral text lost" in " ".join(monitor.check(5, loss=0.6, grad_norm=1.0, margin=1.7).violations)


def test_a_blind_guard_reads_nothing(monkeypatch):
    model = tiny_model()
    monkeypatch.setattr(model, "generate", None)
    monkeypatch.setattr(model.module, "forward", None)
    monitor = monitor_of(model, dataclasses.replace(BRIEF, mode="none"))
    assert monitor.check(4, loss=0.1, grad_norm=1.0, margin=9.0, chosen_drop=3.0).zone == "warning"
    assert monitor.history[-1].readings == {}
    assert "samples" not in monitor.record()
    json.dumps(monitor.record())
    assert monitor.check(5, loss=math.nan, grad_norm=1.0).zone == "stop"


@pytest.mark.parametrize("mode", ["default", "strict", "off"])
def test_weights_that_are_no_numbers_stop_a_run(mode):
    model = tiny_model()
    monitor = monitor_of(model, dataclasses.replace(BRIEF, mode=mode))
    with torch.no_grad():
        model.module.get_output_embeddings().weight.fill_(math.nan)
    assert monitor.check(4, loss=0.6, grad_norm=1.0).zone == "stop"
    assert not monitor.healthy_sample


def test_a_sign_brings_samples_forward():
    monitor = monitor_of(tiny_model(), Guard(sample_every=12, sample_tokens=8))
    for step in (1, 2, 3, 4):
        monitor.check(step, loss=0.6, grad_norm=1.0, margin=1.7 if step > 2 else 0.0)
        assert bool(monitor.samples) is (step == 4)
    assert monitor.healthy_sample, "a sign alone does not make a state unworthy"


def test_state_goes_through_json_and_back():
    model = tiny_model()
    first, second = (monitor_of(model, step_tokens=100.0) for _ in range(2))
    for step in range(1, 20):
        first.check(step, loss=0.6, grad_norm=1.0, margin=0.004 * step**2, chosen_drop=0.01 * step)
    second.load(json.loads(json.dumps(first.state())))
    assert second.history == first.history
    assert second.verdict == first.verdict
    assert second.latest == first.latest
    assert second.latest
    assert any("subject" in r.readings for r in second.history)
    after = [m.check(20, loss=0.6, grad_norm=1.0, margin=1.6, chosen_drop=1.3) for m in (first, second)]
    assert after[0] == after[1]
    assert any("accelerates" in sign for sign in after[1].warnings), "signs look back over the restored history"


def test_conversations_too_long_for_samples_are_not_asked():
    """Training takes what fills the context; samples and held-out answers need room behind it."""
    model = tiny_model(max_position_embeddings=128)
    full = chat("long " * 21)
    assert 128 - BRIEF.sample_tokens < len(model.encoder.encode_prompt(full)) <= 128
    monitor = monitor_of(model, own=[full, chat("Tea?")], held_out=[full])
    assert full not in monitor.prompts
    assert monitor.check(1, loss=0.6, grad_norm=1.0).zone == "healthy"
    assert len(monitor.drift.held_out) == 3, "everyday prompts take the place of what does not fit"


def test_everyday_prompts_are_asked_where_there_are_no_others():
    monitor = monitor_of(tiny_model(), own=[], held_out=[])
    assert {p[-1].content for p in monitor.prompts} <= {*EVERYDAY, *short_questions()}
    assert len(monitor.drift.held_out) == 3


def test_a_snapshot_is_a_copy_and_comes_back():
    layer = torch.nn.Linear(3, 2)
    before = {n: p.detach().clone() for n, p in layer.named_parameters()}
    snapshot = Snapshot.of(7, layer.named_parameters())
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.fill_(5)
    snapshot.restore(layer.named_parameters())
    assert snapshot.step == 7
    assert all(torch.equal(p, before[n]) for n, p in layer.named_parameters())


# -- what was warned of --------------------------------------------------------------


def test_warnings_are_summed_up_by_sensor_value_limit_and_step():
    margins = [0.2, 1.6, 1.4, 1.8, 2.5]
    history = [reading(step, margin=margin) for step, margin in enumerate(margins, start=50)]
    verdicts = [judged(*history[: n + 1]) for n in range(len(history))]
    steps = [{"step": r.step, "guard": dataclasses.asdict(v)} for r, v in zip(history, verdicts, strict=True)]
    (summary,) = summarize_warnings(steps)
    assert summary.sensor == "margin"
    assert summary.text == (
        "3 steps, from 51 to 54: at the first reward margin 1.60 (sign over 1.5); "
        "at the last reward margin 2.50 (sign over 2)"
    )
    assert summarize_warnings(steps[:1]) == []
    assert summarize_warnings(steps[:2])[0].text == "step 51: reward margin 1.60 (sign over 1.5)"


def test_every_warning_names_its_sensor():
    verdict = judged(reading(5, loss=0.1, margin=1.8), total=100)
    assert verdict.warned_by == ("early_loss", "margin")
    assert len(verdict.warnings) == 2


# -- reach ------------------------------------------------------------------------


def test_reach_says_when_nothing_needed_a_flip():
    text = explain_flip_margin(Preference(loss="dpo", beta=0.1), [(-5.0, -9.0)], 1.0, 2.0)
    assert text == "No pair needed a flip: the untouched model ranks every pair as wanted."


def test_reach_compares_the_margin_that_a_flip_takes_with_the_last_one():
    reference = [(-30.0, -10.0), (-50.0, -10.0), (-70.0, -10.0), (-5.0, -9.0)]
    text = explain_flip_margin(Preference(loss="dpo", beta=0.1), reference, 2.34, 2.0)
    assert text == (
        "Flipping the median of the 3 of 4 pairs that are wrong by their sums in the untouched model takes a margin of "
        "β·c = 0.1 · 40 nats = 4.0; the last margin was 2.3. "
        "That is over 2, the margin at which collapses were seen: β ≤ 0.05 would do."
    )


def test_reach_within_the_cap_asks_for_no_other_beta():
    text = explain_flip_margin(Preference(loss="hinge", beta=0.05), [(-30.0, -10.0)], 0.4, 2.0)
    assert text.endswith("β·c = 0.05 · 20 nats = 1.0; the last margin was 0.4.")


def test_reach_of_a_loss_without_such_a_margin():
    text = explain_flip_margin(Preference(loss="simpo", beta=2.0), [(-30.0, -10.0), (-1.0, -2.0)], 0.4, 2.0)
    assert text == "1 of 2 pairs were wrong by their sums at the start; 'simpo' has no margin for their flip."


@settings(max_examples=50)
@given(st.floats(0.01, 500), st.floats(0.01, 3), st.floats(0.1, 5))
def test_the_beta_that_would_do_does(c, beta, cap):
    text = explain_flip_margin(Preference(loss="dpo", beta=beta), [(-c - 1.0, -1.0)], 0.0, cap)
    if "β ≤ " in text:
        advised = float(text.split("β ≤ ")[1].split()[0])
        assert 0.8 * cap / (c * 1.0001) <= advised <= cap / c * 1.0001
        assert advised < beta * 1.0001
