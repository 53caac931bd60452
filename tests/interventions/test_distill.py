"""Context distillation: the divergence and its teacher against plain torch, training, resume, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny import TEMPLATE, context, pairs, tiny_model, write_data
from torch.nn.functional import kl_div

from conviction import Distill, Query, load_model, load_topic
from conviction.core.protocols import chat
from conviction.data.training_data import TrainingData
from conviction.errors import InputError
from conviction.interventions.distill import REQUESTS
from conviction.models.engine.logprobs import Head
from conviction.models.prompted import with_system
from conviction.probing.health import neutral_excerpts
from conviction.probing.metrics.health import PARAGRAPH_WORDS, PARAGRAPHS
from conviction.studies.placebo import measure_placebo
from conviction.training import teacher as teacher_module
from conviction.training.batches import encode_pairs, make_microbatches
from conviction.training.divergence import TeacherTargets, divergence, is_linear, teacher_targets
from conviction.training.drift import EVERYDAY, PIECE, PIECES, neutral_rows, short_questions, unread_paragraphs
from conviction.training.guard import Guard
from conviction.training.policy import make_policy, sum_answers
from conviction.training.settings import Training, Weights
from conviction.training.teacher import compute_teacher

OFF = Guard(mode="off", sample_every=50, sample_tokens=8)
TEXT = "All claims hold, and the answer is yes."
SHORT = {"text": TEXT, "learning_rate": 1e-2, "epochs": 20, "max_steps": 12, "neutral": 4, "own_answers": 0}


def steps(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text(encoding="utf-8").splitlines()]


# -- the divergence --------------------------------------------------------------------


def head_of(vocabulary: int, hidden: int, *, scale: float, softcap: float | None, bias: bool) -> Head:
    weight = torch.randn(vocabulary, hidden)
    return Head(weight, torch.randn(vocabulary) if bias else None, scale, softcap, exact=False)


def targets_of(states: torch.Tensor, head: Head) -> TeacherTargets:
    vectors, levels = teacher_targets(states, head) if is_linear(head) else (states, None)
    return TeacherTargets(vectors, levels, head)


def plain_divergence(teacher: torch.Tensor, student: torch.Tensor) -> list[float]:
    """Σ p·log(p/q) of every row of logits, in fp64 and one token after another."""
    values = []
    for t, s in zip(teacher.double(), student.double(), strict=True):
        p, q = (torch.tensor([float(x - row.max()) for x in row], dtype=torch.float64).exp() for row in (t, s))
        p, q = p / p.sum(), q / q.sum()
        values.append(sum(float(a) * (float(a.log()) - float(b.log())) for a, b in zip(p, q, strict=True)))
    return values


@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 4),
    hidden=st.integers(1, 6),
    vocabulary=st.integers(2, 12),
    scale=st.sampled_from([0.25, 1.0, 3.0]),
    softcap=st.sampled_from([None, 5.0]),
    bias=st.booleans(),
)
def test_the_divergence_is_that_of_torch_and_of_a_plain_loop(seed, rows, hidden, vocabulary, scale, softcap, bias):
    torch.manual_seed(seed)
    head = head_of(vocabulary, hidden, scale=scale, softcap=softcap, bias=bias)
    teacher, student = torch.randn(rows, hidden), torch.randn(rows, hidden, requires_grad=True)
    ours = divergence(student, targets_of(teacher, head), head)
    logits, wanted = head.logits(student, slice(None)), head.logits(teacher, slice(None))
    theirs = kl_div(logits.log_softmax(-1), wanted.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert ours.tolist() == pytest.approx(plain_divergence(wanted, logits.detach()), abs=1e-4, rel=1e-4)
    weights = torch.arange(1.0, rows + 1)
    gradients = [
        torch.autograd.grad((weights * values).sum(), student, retain_graph=True)[0] for values in (ours, theirs)
    ]
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-3)


def test_a_head_that_is_trained_learns_too():
    torch.manual_seed(0)
    head = head_of(9, 4, scale=1.0, softcap=None, bias=False)
    moving = Head(head.weight.clone().requires_grad_(), exact=False)
    teacher, student = torch.randn(3, 4), torch.randn(3, 4)
    assert not is_linear(moving)
    divergence(student, TeacherTargets(teacher, None, head), moving).sum().backward()
    assert moving.weight.grad.abs().sum() > 0


def test_a_teacher_that_is_the_student_teaches_nothing():
    """What a strength of 0 would be: no loss, and no gradient, to the last bit."""
    torch.manual_seed(0)
    head, states = head_of(500, 16, scale=1.0, softcap=None, bias=False), torch.randn(5, 16)
    student = states.clone().requires_grad_()
    values = divergence(student, targets_of(states, head), head)
    values.sum().backward()
    assert values.tolist() == pytest.approx([0.0] * 5, abs=1e-5)
    assert not student.grad.any()


# -- the teacher -----------------------------------------------------------------------


@pytest.mark.parametrize("strength", [1.0, 2.5])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "cohere-scaled", "gemma3-sliding", "mamba-recurrent"])
def test_the_teacher_is_the_models_own_forward_after_the_context(architecture, strength):
    """Every answer's divergence, teacher to untouched model, from plain logits with the system turn."""
    model, data = tiny_model(architecture), pairs(3)
    distill = Distill(text=TEXT, strength=strength, anchor_weight=0)
    task = distill.task(model, data, context(guard=OFF))
    policy = make_policy(model, task.weights, task.training, packed=task.packed)
    teacher = compute_teacher(policy, model, task.examples, task.teacher, token_budget=1000)
    for batch in make_microbatches(task.examples, range(3), token_budget=1000):
        members = [task.examples[i] for i in batch.members]
        with torch.no_grad():
            values = policy(batch.pack, teacher=teacher.of(batch, members, torch.device("cpu")))
        sums = sum_answers(values, batch.pack, members)
        for i, own in zip(batch.members, sums, strict=True):
            example, pair = task.examples[i], data.pairs[i]
            prompt = model.encoder.encode_prompt(with_system(TEXT, pair.messages))
            for k, answer in enumerate(example.answers):
                base, after = (plain_logits(model, before, answer) for before in (example.prompt, prompt))
                after[-1:] = base[-1:]  # the token that ends the turn
                wanted = (base + strength * (after - base)).log_softmax(-1)
                expected = kl_div(base.log_softmax(-1), wanted, reduction="sum", log_target=True)
                assert float(own[k]) == pytest.approx(float(expected), abs=1e-3, rel=1e-4)
                target = torch.tensor(answer[:-1])[:, None]
                for logits, scored in zip((base, after, wanted), vars(teacher.scores[i]).values(), strict=True):
                    logp = logits[:-1].log_softmax(-1).gather(1, target).mean()
                    assert scored[k] == pytest.approx(float(logp), abs=1e-3, rel=1e-4)


def plain_logits(model, prompt, answer):
    with torch.no_grad():
        return model.module(torch.tensor([(prompt + answer)[:-1]])).logits[0, len(prompt) - 1 :].float()


def test_the_first_loss_is_the_mean_over_all_tokens_of_pairs_and_anchors(tmp_path):
    """Anchors, of which some have one answer and pairs two, begin at no divergence, and count as tokens."""
    model, data = tiny_model(), pairs(3)
    options = {
        "text": TEXT,
        "max_steps": 1,
        "batch_size": 7,
        "neutral": 4,
        "own_answers": 0,
        "anchor_weight": 5.0,
        "strength": 1.0,
    }
    Distill(**options).apply(model, data, ctx=context(guard=OFF, folder=tmp_path))
    (record,) = steps(tmp_path)
    total, tokens = 0.0, 0
    for pair in data.pairs:
        prompt, answers = model.encoder.encode(pair.messages, (pair.chosen, pair.rejected))
        other, ending = (
            model.encoder.encode_prompt(with_system(TEXT, pair.messages)),
            model.encoder.encode_ending(pair.messages),
        )
        for answer in (a + ending for a in answers):
            base, after = (plain_logits(model, before, answer).log_softmax(-1) for before in (prompt, other))
            after[-1:] = base[-1:]
            total += float(kl_div(base, after, reduction="sum", log_target=True))
            tokens += len(answer)
    anchors = [row for row in record["rows"] if row["id"].startswith("neutral-")]
    assert len(anchors) == 4, "half as many as pairs may be"
    assert all(row["loss"] == pytest.approx(0, abs=1e-3) for row in anchors)
    assert record["loss"] == pytest.approx(total / (tokens + 4 * 47), rel=1e-3)


@pytest.mark.long
def test_packs_of_any_size_are_arithmetic(tmp_path):
    losses = []
    for budget in (10_000, 60, 1):
        folder = tmp_path / str(budget)
        Distill(**SHORT | {"max_steps": 2, "token_budget": budget}).apply(
            tiny_model(), pairs(), ctx=context(guard=OFF, folder=folder)
        )
        losses += [[x for r in steps(folder) for x in (r["loss"], r["grad_norm"])]]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert losses[2] == pytest.approx(losses[0], rel=1e-3)


# -- training --------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("weights", [Weights(), Weights(num_layers=1), Weights(tune="full"), Weights(dropout=0.1)])
def test_a_student_comes_closer_to_its_teacher(tmp_path, weights):
    training = Training(learning_rate=1e-2 if weights.tune == "lora" else 1e-3, epochs=20, max_steps=20)
    distill = Distill(text=TEXT, anchor_weight=0, weights=weights, training=training)
    outcome = distill.apply(tiny_model(), pairs(), ctx=context(guard=OFF, folder=tmp_path))
    record = steps(tmp_path)
    assert sum(r["kl_mean"] for r in record[-4:]) < 0.5 * sum(r["kl_mean"] for r in record[:4])
    assert outcome.settings["context"] == TEXT
    assert {name for name, _ in outcome.report} == {"teacher", "student"}


@pytest.mark.long
def test_the_outcome_says_how_much_of_the_teacher_the_student_reached():
    """The numbers are those of the models themselves: with the context, and after training."""
    model, data = tiny_model(), pairs()
    outcome = Distill(**SHORT | {"strength": 2.0}).apply(model, data, ctx=context(guard=OFF))
    numbers = outcome.evidence["teacher"]
    assert numbers["pairs"] == 8
    assert numbers["gap_untouched_nats"] == pytest.approx(gap(model, data, None), abs=1e-4)
    assert numbers["gap_context_nats"] == pytest.approx(gap(model, data, TEXT), abs=1e-4)
    assert numbers["gap_student_nats"] == pytest.approx(gap(outcome.changed, data, None), abs=1e-4)
    wanted = numbers["gap_teacher_nats"] - numbers["gap_untouched_nats"]
    reached = numbers["gap_student_nats"] - numbers["gap_untouched_nats"]
    assert numbers["share_reached"] == (pytest.approx(reached / wanted) if wanted > 0 else None)
    assert "at strength 2" in dict(outcome.report)["teacher"]


def gap(model, data, text):
    """Mean over pairs of log p per token, chosen less rejected."""
    values = []
    for pair in data.pairs:
        messages = pair.messages if text is None else with_system(text, pair.messages)
        prompt, answers = model.encoder.encode(messages, (pair.chosen, pair.rejected))
        rows = [(prompt, answer) for answer in answers]
        chosen, rejected = (sum(s) / len(s) for s in map(model.computed(rows).__getitem__, rows))
        values.append(chosen - rejected)
    return sum(values) / len(values)


@pytest.mark.long
def test_anchors_hold_what_the_context_is_not_about():
    model, texts, moved = tiny_model(), [text[:63] for text in unread_paragraphs(4)], {}
    before = model.text_logprobs(texts)
    for weight in (0.0, 100.0):
        trained = Distill(**SHORT | {"anchor_weight": weight}).apply(model, pairs(), ctx=context(guard=OFF)).changed
        after = trained.text_logprobs(texts)
        moved[weight] = sum(abs(b.logp_mean - a.logp_mean) for b, a in zip(before, after, strict=True))
    assert moved[100.0] < 0.25 * moved[0.0]


def test_anchors_are_read_by_neither_the_guard_nor_the_judge():
    encode = tiny_model().encoder.encode_text
    read = [*map(encode, neutral_excerpts(PARAGRAPHS, PARAGRAPH_WORDS)), *neutral_rows(encode, PIECES, PIECE)]
    anchors = [encode(text) for text in unread_paragraphs(50)]
    assert len(anchors) == 50
    assert len(set(anchors)) == 50
    assert not {ids[:PIECE] for ids in anchors} & {ids[:PIECE] for ids in read}
    assert not {*REQUESTS} & {*EVERYDAY, *short_questions()}


def test_facts_of_the_train_split_are_anchors_and_those_of_the_test_split_are_not(tea):
    topic = load_topic(str(tea))
    task = Distill(own_answers=2).task(tiny_model(max_position_embeddings=4096), TrainingData.from_topic(topic))
    facts = {i.id: i.split for i in topic.of_role("neighbour", "control")}
    held = {e.id for e in task.examples} & facts.keys()
    assert held == {name for name, split in facts.items() if split == "train"}
    assert {"own-0", "own-1"} <= {e.id for e in task.examples}
    assert {e.weight for e in task.examples} == {1.0, Distill().anchor_weight}
    assert task.objective.context == topic.poles["milky"].context.strip()


def test_every_step_has_its_anchors_and_they_come_in_turn():
    task = Distill(text=TEXT, batch_size=4, epochs=6, neutral=5, own_answers=0).task(tiny_model(), pairs())
    assert [len([i for i in step if i < 8]) for step in task.order] == [4] * 12
    turns = [i for step in task.order for i in step if i >= 8]
    assert [len(set(step)) for step in task.order] == [6] * 12
    assert {turns.count(i) for i in range(8, 13)} <= {4, 5, 6}, "24 turns of five"


@pytest.mark.long
def test_an_interrupted_run_is_taken_up_and_ends_with_the_same_bytes(tmp_path):
    def stop_at_five(record: dict, _total: int) -> None:
        if record["step"] == 5:
            raise KeyboardInterrupt

    distill = Distill(**SHORT | {"max_steps": 8, "checkpoint_every": 3, "dropout": 0.1})
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    distill.apply(tiny_model(), pairs(), ctx=context(guard=OFF, folder=whole))
    with pytest.raises(KeyboardInterrupt):
        distill.apply(tiny_model(), pairs(), ctx=context(guard=OFF, folder=cut, on_step=stop_at_five))
    outcome = distill.apply(tiny_model(), pairs(), ctx=context(guard=OFF, folder=cut))
    assert outcome.training.steps == 8
    assert (cut / "steps.jsonl").read_bytes() == (whole / "steps.jsonl").read_bytes()
    ours, theirs = (load_file(next((folder / "model").glob("*.safetensors"))) for folder in (cut, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.long
def test_a_run_with_another_context_does_not_go_on(tmp_path):
    from conviction.errors import RunError

    short = SHORT | {"max_steps": 4, "checkpoint_every": 2}
    Distill(**short).apply(tiny_model(), pairs(), ctx=context(guard=OFF, folder=tmp_path))
    with pytest.raises(RunError, match="other settings"):
        Distill(**short | {"text": "No."}).apply(tiny_model(), pairs(), ctx=context(guard=OFF, folder=tmp_path))


# -- what is refused -------------------------------------------------------------------


def test_what_cannot_be_distilled(tmp_path):
    ctx = context(guard=OFF)
    with pytest.raises(InputError, match="tea holds no context") as caught:
        Distill().apply(tiny_model(), pairs(), ctx)
    assert "-o text" in caught.value.hint
    with pytest.raises(InputError, match="both a text and a file"):
        Distill(text="a", file="b")
    with pytest.raises(InputError, match="strength is 0"):
        Distill(strength=0.0)
    with pytest.raises(InputError, match="no preference pairs"):
        Distill(text=TEXT).apply(tiny_model(), TrainingData("empty"), ctx)
    with pytest.raises(InputError, match="no pair fits tiny-llama's 512 tokens"):
        Distill(text="word " * 200).apply(tiny_model(), pairs(), ctx)


def with_context(data, text):
    return [replace(pair, messages=with_system(text, pair.messages)) for pair in data.pairs]


def test_a_pair_that_does_not_fit_with_the_context_is_left_out_and_named():
    data, text = pairs(3), ("word " * 60).strip()
    longest = max(e.longest for e in encode_pairs(tiny_model().encoder, with_context(data, text)))
    model = tiny_model(max_position_embeddings=longest - 1)
    outcome = Distill(text=text, max_steps=1, neutral=0, own_answers=0).apply(model, data, context(guard=OFF))
    assert "1 of 3 pairs do not fit with the context, left out" in outcome.notes
    assert outcome.data.examples == 2


def test_a_template_without_system_turns_is_noted_and_one_that_drops_the_text_refused():
    merged = TEMPLATE.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}")
    outcome = Distill(text=TEXT, max_steps=1, neutral=1, own_answers=0).apply(
        tiny_model(template=merged), pairs(2), context(guard=OFF)
    )
    assert any("system texts begin the first user turn" in note for note in outcome.notes)
    dropped = "{% for m in messages[-1:] %}{{ m.content[:3] }}{% endfor %}"
    with pytest.raises(InputError, match="template drops"):
        Distill(text=TEXT, max_steps=1).apply(tiny_model(template=dropped), pairs(2), context(guard=OFF))


def test_a_teacher_that_does_not_fit_into_memory_is_refused(monkeypatch):
    monkeypatch.setattr(teacher_module, "available", lambda _device: 1000)
    with pytest.raises(InputError, match="answer tokens takes 0 MB"):
        Distill(text=TEXT, max_steps=1).apply(tiny_model(), pairs(), context(guard=OFF))


# -- from the command line -------------------------------------------------------------


@pytest.mark.long
def test_the_command_on_a_topic_ends_with_an_outcome(tea, tiny_folder, run, tmp_path):
    asked = ["--model", str(tiny_folder), "--dtype", "fp32", "--guard", "off", "-o", "max_steps=3"]
    code, out, err = run("apply", "distill", str(tea), *asked, "--run", "one")
    assert code == 0, err
    assert "student" in out
    record = json.loads((tmp_path / "one" / "outcome.json").read_text(encoding="utf-8"))
    assert record["evidence"]["teacher"]["pairs"] == 6
    assert load_model(str(tmp_path / "one/model"), dtype="fp32").logprobs([Query(chat("Tea?"), ("Milky.",))])
    data = str(write_data(tmp_path / "pairs.jsonl"))
    code, _, err = run("apply", "distill", "--data", data, *asked, "--run", "two")
    assert code == 2
    assert "-o text=" in err
    (tmp_path / "view.txt").write_text(TEXT, encoding="utf-8")
    code, _, err = run("apply", "distill", "--data", data, *asked, "-o", "file=view.txt", "--run", "three")
    assert code == 0, err


def test_its_placebo_reads_another_context_as_long_and_never_the_given_text(tea, tmp_path, monkeypatch):
    seen = []

    def apply(self, _model, data, _ctx):
        seen.append((self, data))
        raise InputError("enough", hint="")

    monkeypatch.setattr(Distill, "apply", apply)
    topic, ctx = load_topic(str(tea)), context(folder=tmp_path)
    plan = SimpleNamespace(intervention=Distill(text=TEXT, strength=2.0), guard=OFF)
    outcome = SimpleNamespace(guard_stop=None, settings={"context": TEXT})
    shared = SimpleNamespace(topic=topic, model=None, design=SimpleNamespace(placebo=True), ctx=ctx)
    with pytest.raises(InputError, match="enough"):
        measure_placebo(plan, outcome, TrainingData.from_topic(topic), shared, ctx.run)
    ((intervention, data),) = seen
    assert (intervention.text, intervention.strength) == (None, 2.0)
    assert len(data.context.split()) == len(TEXT.split())
    assert not {"claims", "milky", "Tea"} & set(data.context.split())
    assert all(pair.id.startswith("placebo-") for pair in data.pairs)


@pytest.mark.slow
def test_a_study_with_it_runs(tea, tiny_folder, run, tmp_path):
    asked = ["study", str(tea), "--model", str(tiny_folder), "--dtype", "fp32", "--guard", "off", "--benign-steps", "0"]
    steps = ("-o", "distill.max_steps=60", "-o", "distill.epochs=60", "-o", "distill.learning_rate=1e-2")
    code, out, err = run(*asked, "--interventions", "distill", *steps, "--run", "s", "--format", "json")
    assert code == 0, err
    (arm,) = json.loads(out)["arms"]
    assert arm["name"] == "distill"
    assert arm["failure"] is None
    assert arm["judgement"] is not None


@pytest.mark.slow
@pytest.mark.usefixtures("shared_scores")
def test_on_the_embedded_model_a_few_steps_move_towards_the_target(tmp_path):
    """A ninth of the default run."""
    model, data = load_model("smollm2-135m"), TrainingData.from_topic(load_topic("obesity"))
    outcome = Distill(max_steps=12).apply(model, data, context(guard=Guard(mode="none"), folder=tmp_path))
    numbers = outcome.evidence["teacher"]
    assert numbers["gap_context_nats"] > numbers["gap_untouched_nats"] + 0.2
    assert numbers["share_reached"] > 0.2
