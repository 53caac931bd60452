"""What the guard reads on a run's topic: the judge's metrics on the train split, planted faults, and exact resume."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from tiny import context, tiny_model

from conviction.data.topic import Item, Pole, Topic
from conviction.data.training_data import TrainingData
from conviction.interventions.dpo import Dpo
from conviction.models.backends.scripted import ScriptedModel
from conviction.probing.depth import measure_depth
from conviction.probing.metrics import load_metrics
from conviction.probing.paired import Comparison
from conviction.training.drift import read_topic
from conviction.training.guard import Guard, judge
from conviction.training.monitor import GuardMonitor, dose_steps
from conviction.training.sensors import SENSORS, StepReading
from conviction.training.topic import FACTS, PROPOSITIONS, TopicMonitor, topic_readings

QUICK = {"learning_rate": 1e-4, "epochs": 20, "batch_size": 2, "schedule": "constant", "warmup": 0.0}


def claim(i: int, split: str) -> Item:
    answers = {"plain": f"Plain, {i}.", "milky": f"Milky, {i}."}
    return Item(
        id=f"{split}{i}", proposition=f"{split}{i}", role="target", split=split, question=f"Q{i}?", answers=answers
    )


def fact(i: int, role: str, split: str) -> Item:
    name, answers = f"{split}-{role}-{i}", {"true": f"True {role} {i}.", "false": f"False {role} {i}."}
    return Item(id=name, proposition=name, role=role, split=split, question=f"A {role} {i}?", answers=answers)


def tea(*, train: int = 20, facts: int = 8) -> Topic:
    """As many propositions and facts of either role in the test split as in the other."""
    items = [claim(i, split) for split in ("train", "test") for i in range(train)]
    items += [fact(i, r, s) for s in ("train", "test") for r in ("neighbour", "control") for i in range(facts)]
    poles = {"plain": Pole(label="no milk"), "milky": Pole(label="milk")}
    return Topic(name="tea", title="Tea", poles=poles, target="milky", items=tuple(items), digest="tea")


def model(*, lost: int = 0, fact_lead: float = 1.0, own: float = 0.0) -> ScriptedModel:
    """Says what either side holds, but for ``lost`` propositions of the plain one; true facts lead by ``fact_lead``.

    own: nats per token that its answers to facts lose
    """

    def likes(conversation, answer):
        asked = conversation[-1].content if conversation else ""
        spread = sum(map(ord, asked)) % 7 / 100
        if "hold this view" in asked:
            side = "Plain" if "no milk" in asked else "Milky"
            forgotten = side == "Plain" and int(asked.rpartition("Q")[2].rstrip("?")) < lost
            return -2.0 + (0.0 if answer.startswith(side) is forgotten else 1.0)
        given = answer.startswith(("True", "False"))
        return -3.0 + (fact_lead + spread if answer.startswith("True") else 0.0) - (0.0 if given else own)

    return ScriptedModel(likes=likes)


def readings(before: ScriptedModel, after: ScriptedModel, topic: Topic | None = None) -> dict[str, float]:
    monitor = TopicMonitor.begin(before, topic or tea(), None)
    assert monitor is not None
    return read_topic(monitor.read(after))


def complaints(taken: dict[str, float]) -> str:
    return "; ".join(judge([StepReading(step=9, loss=0.6, grad_norm=1.0, readings=taken)], Guard(), 50).violations)


def test_an_untouched_model_has_lost_nothing():
    taken = readings(model(), model())
    assert taken == {"facts_drop": 0.0, "own_words": 0.0, "pluralism": 1.0}
    assert complaints(taken) == ""


def test_a_side_that_can_no_longer_be_stated_stops_a_run():
    taken = readings(model(), model(lost=20))
    assert taken["pluralism"] == pytest.approx(2 * 0.5**PROPOSITIONS), "all of the panel are lost"
    assert "no longer state what a side holds (sign test: p = " in complaints(taken)
    few = readings(model(), model(lost=8))  # 5 of the panel of 12: p = 0.06
    assert few["pluralism"] == pytest.approx(0.0625)
    assert complaints(few) == ""
    some = readings(model(), model(lost=10))  # 6 of the panel, where the judge of a study would say that they are lost
    assert 0.01 < some["pluralism"] < 0.05
    assert complaints(some) == ""
    assert complaints(readings(model(), model(lost=14)))


def test_what_comes_back_is_no_loss():
    assert readings(model(lost=20), model())["pluralism"] == 1.0


@pytest.mark.parametrize(("lead", "stops"), [(1.0, False), (0.85, False), (0.75, True), (1.5, False)])
def test_facts_that_lose_their_lead_stop_a_run(lead, stops):
    taken = readings(model(), model(fact_lead=lead))
    assert taken["facts_drop"] == pytest.approx(max(0.0, 1 - lead))
    assert ("facts of the kit lost" in complaints(taken)) is stops


def test_a_loss_that_the_judges_test_does_not_show_is_none():
    """Two facts can both lose by chance."""
    assert readings(model(), model(fact_lead=-1), tea(facts=2))["facts_drop"] == 0.0


@pytest.mark.parametrize(("lost", "stops"), [(0.0, False), (0.24, False), (0.26, True), (-0.5, False)])
def test_a_model_that_no_longer_writes_what_it_wrote_is_stopped(lost, stops):
    taken = readings(model(), model(own=lost))
    assert taken["own_words"] == pytest.approx(max(0.0, lost), abs=1e-9), "every question loses the same"
    assert ("the untouched model's own answers lost" in complaints(taken)) is stops


def test_own_answers_of_which_half_lost_much_are_not_shown_to_have_lost_the_limit_on_average():
    """Half of twelve lost 0.6 nats per token: 0.3 on average, with a 95 % interval from 0.1."""
    before = model()

    def likes(conversation, answer):
        given = answer.startswith(("True", "False"))
        lost = 0.6 if not given and conversation[-1].content.startswith("A neighbour") else 0.0
        return before.engine.likes(conversation, answer) - lost

    taken = readings(before, ScriptedModel(likes=likes))
    assert 0.05 < taken["own_words"] < 0.15
    assert complaints(taken) == ""


@pytest.mark.parametrize("change", [{}, {"lost": 20}, {"lost": 3}, {"fact_lead": 0.7}, {"fact_lead": 0.85}])
def test_the_guard_says_of_the_train_split_what_the_judge_says_of_the_test_split(change):
    """One definition: with as many items in either split, all of them read, the two cannot disagree."""
    topic = tea(train=PROPOSITIONS, facts=FACTS)
    before = measure_depth(model(), topic)
    comparison = Comparison(before=before, after=measure_depth(model(**change), topic, base=before))
    judged = {p.metric: p.outcome for m in load_metrics(["damage"]) for p in m.judge(comparison)}
    watched = {
        name: outcome
        for name, outcome in judged.items()
        if name.startswith(("pluralism", "locality:neigh", "locality:contr"))
    }
    assert len(watched) == 4
    assert bool(complaints(readings(model(), model(**change), topic))) is ("no" in watched.values())


def test_test_items_are_never_read():
    topic = tea()
    monitor = TopicMonitor.begin(model(), topic, None)
    assert {q.item.split for q in monitor.queries} == {"train"}
    asked = [q.item.role for q in monitor.queries]
    assert asked.count("target") == 2 * PROPOSITIONS
    assert asked.count("neighbour") == asked.count("control") == 2 * FACTS, "given answers, and its own"
    without = topic.model_copy(update={"items": tuple(i for i in topic.items if i.split == "test")})
    assert TopicMonitor.begin(model(), without, None) is None


def test_a_kit_without_facts_has_pluralism_alone():
    style = tea(facts=0)
    assert readings(model(), model(lost=20), style).keys() == {"pluralism"}


def test_a_reading_costs_a_tenth_of_the_steps_between():
    rare, often = (TopicMonitor.begin(model(), tea(), tokens) for tokens in (10.0, 1000.0))
    assert TopicMonitor.begin(model(), tea(), None).every == 1
    assert rare.every > often.every >= 1
    assert rare.every == pytest.approx(100 * often.every, rel=1), "it is counted in tokens"


def test_log_probs_that_are_no_numbers_stop_a_run():
    broken = ScriptedModel(likes=lambda _conversation, answer: math.nan if answer.startswith("True") else -1.0)
    assert TopicMonitor.begin(model(), tea(), None).read(broken) is None
    taken = topic_readings(None)
    assert taken.keys() == {"facts_drop", "own_words", "pluralism"}
    assert "not a number" in complaints(taken)


# -- in a run -----------------------------------------------------------------


def steps(folder):
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text(encoding="utf-8").splitlines()]


def data(topic: Topic) -> TrainingData:
    return TrainingData.from_topic(topic)


BRIEF = Guard(sample_every=2, sample_tokens=8, mode="off")


def test_a_run_on_a_topic_reads_it_and_another_does_not(tmp_path):
    arm = Dpo(**QUICK, max_steps=3)
    arm.apply(tiny_model(), data(tea(train=4, facts=2)), context(guard=BRIEF, folder=tmp_path / "topic"))
    last = steps(tmp_path / "topic")[-1]["guard"]
    assert last["pluralism"] is not None
    assert last["neutral_kl"] == pytest.approx(0, abs=0.05)
    assert last["topic"].keys() == {"neighbour", "control", "own", "pluralism:plain", "pluralism:milky"}
    assert len(last["topic"]["pluralism:plain"]) == 4
    arm.apply(tiny_model(), replace(data(tea(train=4)), topic=None), context(guard=BRIEF, folder=tmp_path / "none"))
    other = steps(tmp_path / "none")[-1]["guard"]
    assert other["pluralism"] is other["facts_drop"] is other["neutral_kl"] is None
    assert "topic" not in other


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_topic_that_cannot_be_read_is_said(split):
    """Its pairs are given, its propositions and facts are all of one split: of the test split nothing is read."""
    topic = tea(train=4, facts=2)
    kept = topic.model_copy(update={"items": tuple(i for i in topic.items if i.split == split)})
    given = replace(data(topic), topic=kept)
    outcome = Dpo(**QUICK, max_steps=2).apply(tiny_model(), given, context(guard=BRIEF))
    noted = any("the guard does not read the topic 'tea'" in note for note in outcome.notes)
    assert noted is (split == "test")


def stubbed(monkeypatch, lost_from: int) -> None:
    """Pluralism reads as lost from one state on that is read, and of one state always the same."""
    states = []

    def read(change):
        if change.after not in states:
            states.append(change.after)
        return 0.001 if states.index(change.after) + 1 >= lost_from else 1.0

    sensor = SENSORS["pluralism"]
    monkeypatch.setitem(SENSORS, "pluralism", replace(sensor, read_topic=replace(sensor.read_topic, read=read)))


LOOSE = {"max_neutral_drop": 50.0, "max_entropy_drop": 1.0, "max_top_mass_drop": 1.0, "max_neutral_kl": 50.0}
LOOSE |= {"max_chosen_drop": 50.0, "max_facts_drop": 50.0, "max_own_drop": 50.0}
LOOSE |= {"min_subject": 0.0, "max_repetition": 1.0}
LOOSE |= {"max_non_alphanumeric": 1.0, "max_sentence_repeats": 99, "max_wrong_answers": 1.0, "sample_tokens": 8}


@pytest.mark.parametrize(("lost_from", "restored"), [(2, 4), (3, 8)])
def test_a_stop_by_the_topic_goes_back_to_a_state_that_was_read(monkeypatch, lost_from, restored):
    monkeypatch.setattr("conviction.training.topic.interval_of", lambda _tokens, _step: 4)
    stubbed(monkeypatch, lost_from)
    guard = Guard(sample_every=4, **LOOSE)
    outcome = Dpo(**QUICK, max_steps=16).apply(tiny_model(), data(tea(train=4, facts=2)), context(guard=guard))
    assert outcome.guard_stop.step == restored + 4
    assert outcome.guard_stop.restored_step == restored
    assert "no longer state" in outcome.guard_stop.text


def test_states_that_were_kept_unread_are_read_before_they_are_given_back(monkeypatch):
    """Samples at 3 and 6, the topic at 8: 6 is read at the stop and refused, 3 is read and given back."""
    monkeypatch.setattr("conviction.training.topic.interval_of", lambda _tokens, _step: 8)
    asked = []

    def read(change):
        asked.append(change)
        return {1: 0.001, 2: 0.001}.get(len(asked), 1.0)

    sensor = SENSORS["pluralism"]
    monkeypatch.setitem(SENSORS, "pluralism", replace(sensor, read_topic=replace(sensor.read_topic, read=read)))
    guard = Guard(sample_every=3, **LOOSE)
    outcome = Dpo(**QUICK, max_steps=16).apply(tiny_model(), data(tea(train=4, facts=2)), context(guard=guard))
    assert (outcome.guard_stop.step, outcome.guard_stop.restored_step) == (8, 3)
    assert any(note.startswith("step 6 was not given back") for note in outcome.notes)
    assert len(asked) == 3


def test_what_is_given_back_passes_the_limits_of_all_rows(monkeypatch):
    """Rows are read at 1 and 7 only, samples at 2, 4 and 6: of what was kept, 6 has lost too much neutral text."""
    begin = GuardMonitor.begin.__func__

    def rarely(cls, *args, **given):
        """Neutral text loses in proportion to how far the adapter has moved, which grows from step to step."""
        monitor = begin(cls, *args, **given)
        moving = [p for name, p in monitor.model.module.named_parameters() if "lora_B" in name]

        def logits(ids, mask, keep):
            del mask
            flat = torch.zeros(len(ids), keep, 300)
            flat[..., 0] = sum(float(p.detach().abs().mean()) for p in moving) / len(moving) * 1e4
            return flat

        drift = replace(monitor.drift, parts=3, every=6)
        first = drift.read_all(logits, torch.device("cpu"))
        return replace(monitor, drift=drift, logits=logits, first=first)

    monkeypatch.setattr(GuardMonitor, "begin", classmethod(rarely))
    guard = Guard(sample_every=2, **LOOSE | {"max_neutral_drop": 0.3})
    arm = Dpo(**QUICK, max_steps=16)
    outcome = arm.apply(tiny_model(), replace(data(tea(train=4)), topic=None), context(guard=guard))
    assert outcome.guard_stop.step == 7
    assert outcome.guard_stop.restored_step == 2
    assert any(note.startswith("step 6 was not given back: neutral text lost") for note in outcome.notes)


class Killed(BaseException):
    pass


@pytest.mark.long
@pytest.mark.parametrize("killed_at", [1, 3, 5, 6])
def test_a_run_on_a_topic_resumes_exactly(tmp_path, monkeypatch, killed_at):
    """Parts of the rows, the topic every fourth step, and states that are kept unread: all of it goes on as it was."""
    monkeypatch.setattr("conviction.training.topic.interval_of", lambda _tokens, _step: 4)
    arm = Dpo(**QUICK | {"learning_rate": 1e-3}, max_steps=9, checkpoint_every=1)
    guard, topic = Guard(sample_every=3, **LOOSE), tea(train=4, facts=2)

    def kill(record, _total):
        if record["step"] == killed_at:
            raise Killed

    whole = arm.apply(tiny_model(), data(topic), context(guard=guard, folder=tmp_path / "whole"))
    with pytest.raises(Killed):
        arm.apply(tiny_model(), data(topic), context(guard=guard, folder=tmp_path / "cut", on_step=kill))
    again = arm.apply(tiny_model(), data(topic), context(guard=guard, folder=tmp_path / "cut"))
    assert steps(tmp_path / "cut") == steps(tmp_path / "whole")
    weights = [dict(o.model.module.named_parameters()) for o in (whole, again)]
    assert all(torch.equal(p, weights[1][name]) for name, p in weights[0].items())


def test_a_resumed_run_gives_back_a_state_that_was_kept_unread_before_the_kill(tmp_path, monkeypatch):
    monkeypatch.setattr("conviction.training.topic.interval_of", lambda _tokens, _step: 8)
    asked = []

    def read(change):
        asked.append(change)
        return 0.001 if len(asked) == 1 else 1.0

    def kill(record, _total):
        if record["step"] == 7:
            raise Killed

    sensor = SENSORS["pluralism"]
    monkeypatch.setitem(SENSORS, "pluralism", replace(sensor, read_topic=replace(sensor.read_topic, read=read)))
    arm, topic = Dpo(**QUICK, max_steps=16, checkpoint_every=1), data(tea(train=4, facts=2))
    guard = Guard(sample_every=3, **LOOSE)
    with pytest.raises(Killed):
        arm.apply(tiny_model(), topic, context(guard=guard, folder=tmp_path, on_step=kill))
    assert asked == []
    outcome = arm.apply(tiny_model(), topic, context(guard=guard, folder=tmp_path))
    assert (outcome.guard_stop.step, outcome.guard_stop.restored_step) == (8, 6)


def test_a_model_that_begins_random_is_not_read_on_its_topic():
    model_, topic = tiny_model(), tea(train=4, facts=2)

    def logits(ids, mask, keep):
        return model_.module(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=keep).logits

    given = {"own": [], "held_out": [], "total_steps": 9, "topic": topic}
    monitor = GuardMonitor.begin(Guard(sample_tokens=8), model_, logits, begins_random=True, **given)
    assert monitor.topic is None
    assert math.isnan(monitor.drift.read(logits, torch.device("cpu")).kl)


def test_a_forecast_names_the_sensors_that_it_does_not_simulate():
    from conviction.forecasting.pipeline import _unsimulated

    text = _unsimulated()
    for name in ("facts_drop", "pluralism", "neutral_kl", "wrong_answers", "repeated_sentences", "entropy_change"):
        assert name in text
    assert "neutral_drop" not in text
    assert "chosen_drop" not in text


def test_what_the_untouched_model_answers_is_asked_once_for_all_runs_on_it(monkeypatch, tmp_path):
    from conviction.models.hf import HFModel
    from conviction.training import untouched

    asked, real = list[int](), HFModel.generate

    def generate(self, prompts, **named):
        asked.append(len(prompts))
        return real(self, prompts, **named)

    def run(model, name):
        asked.clear()
        Dpo(**QUICK, max_steps=2).apply(
            model, data(tea(train=4, facts=2)), context(guard=BRIEF, folder=tmp_path / name)
        )
        return list(asked)

    monkeypatch.setattr(HFModel, "generate", generate)
    untouched._RESULTS.clear()
    first, second = run(tiny_model(), "a"), run(tiny_model(), "b")
    assert len(second) == len(first) - 2, "neither the samples nor its own answers to facts"
    assert [one["guard"] for one in steps(tmp_path / "a")] == [one["guard"] for one in steps(tmp_path / "b")]
    changed = tiny_model()
    with torch.no_grad():
        next(changed.module.parameters()).mul_(1.5)
    assert len(run(changed, "c")) == len(first), "another model is asked"


def test_the_topic_is_read_at_doses_besides_the_guards_own_intervals(monkeypatch, tmp_path):
    monkeypatch.setattr("conviction.training.topic.interval_of", lambda _tokens, _step: 100)
    given = {"guard": BRIEF, "folder": tmp_path / "doses"}
    ctx = replace(context(**given), doses=3)
    Dpo(**QUICK, max_steps=8).apply(tiny_model(), data(tea(train=4, facts=2)), ctx)
    read = [one["step"] for one in steps(tmp_path / "doses") if "topic" in one["guard"]]
    assert read == sorted(dose_steps(8, 3)) == [3, 6, 8]
    assert dose_steps(8, 0) == frozenset()


def test_a_fact_that_leaves_no_room_for_an_own_answer_does_not_stop_the_others_from_being_read(monkeypatch):
    from conviction.training.sensors import own_words

    topic = tea()
    long = "A neighbour 0?"
    real = ScriptedModel.fits
    monkeypatch.setattr(
        ScriptedModel, "fits",
        lambda self, query, room=0: (not room or query.messages[-1].content != long) and real(self, query, room=room),
    )  # fmt: skip
    monitor = TopicMonitor.begin(model(), topic, None)
    assert monitor is not None
    own = [q.item.question for q in monitor.queries if q.condition == own_words.OWN]
    assert (long in own, len(own)) == (False, 2 * FACTS - 1)
    assert readings(model(), model(lost=20))["pluralism"] < 0.01
