"""Knowledge editing: the algebra, the search for values, what is told of an edit."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import context, tiny_model

from conviction.core.protocols import Query, chat
from conviction.core.storage import cache_dir
from conviction.data.facts import Fact, Neighbour
from conviction.data.training_data import TrainingData
from conviction.editing.covariance import covariances
from conviction.editing.descent import Descent
from conviction.editing.generation_check import GenerationCheck
from conviction.editing.requests import request
from conviction.editing.scores import FactReading, score_edits
from conviction.editing.session import begin
from conviction.editing.sites import find_sites
from conviction.editing.solve import memit_update, null_space, null_space_update, rome_update
from conviction.editing.values import block_states, find_values, keys, residual_scale
from conviction.errors import InputError, ModelError
from conviction.interventions.memit import Memit
from conviction.interventions.rome import Rome
from conviction.models.copies import weights_hash
from conviction.models.delta import Delta, LowRank, edited, load_delta
from conviction.models.engine.logprobs import find_head
from conviction.models.hf import HFModel
from conviction.models.lora import decoder_layers
from conviction.models.shift import shift_block
from conviction.models.states import hooked, states_of
from conviction.training.guard import Guard

ARCHITECTURES = ["llama", "qwen2", "gemma3-sliding", "gpt2", "gemma2-softcap", "mistral-sliding"]
FACT = Fact(
    "f1",
    "The drink of {} is",
    "the old town",
    "milk",
    "water",
    ("What people of the old town drink is",),
    (Neighbour("The drink of the sea is", "salt"),),
)
PROSE = "\n\n".join(f"Paragraph {i} tells of rivers, hills and weather in plain words." for i in range(40))
OFF = Guard(mode="off")
ASKED = [Query(chat("What do people drink?"), ("Milk.", "Water."))]


def matrix(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def moment_of(width: int, seed: int) -> torch.Tensor:
    sample = matrix(4 * width, width, seed)
    return sample.T @ sample / len(sample)


# -- algebra ---------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 12), st.integers(2, 20), st.integers(0, 1000))
def test_rome_puts_out_the_change_for_its_key_and_least_else(hidden, width, seed):
    key, change, moment = matrix(1, width, seed)[0], matrix(1, hidden, seed + 1)[0], moment_of(width, seed + 2)
    update = rome_update(key, change, moment).dense()
    torch.testing.assert_close(update @ key, change, atol=1e-3, rtol=1e-3)
    # any other rank-one update that does the same disturbs ordinary keys more: tr(Δ C Δᵀ) is least
    other = change[:, None] * (key / (key @ key))[None]
    cost = torch.trace(update @ moment @ update.T)
    assert cost <= torch.trace(other @ moment @ other.T) * (1 + 1e-4)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(0, 1000))
def test_memit_without_old_memories_writes_every_residual(facts, seed):
    keys_, residuals = matrix(facts, 16, seed), matrix(facts, 8, seed + 1)
    update = memit_update(keys_, residuals, torch.eye(16), 1e-6).dense()
    torch.testing.assert_close(keys_ @ update.T, residuals, atol=1e-2, rtol=1e-2)


def test_memit_solves_its_normal_equations():
    keys_, residuals, moment = matrix(5, 16, 1), matrix(5, 8, 2), moment_of(16, 3)
    update = memit_update(keys_, residuals, moment, 7.0).dense()
    torch.testing.assert_close(update @ (7 * moment + keys_.T @ keys_), residuals.T @ keys_, atol=1e-3, rtol=1e-3)


def test_the_null_space_leaves_loud_keys_alone():
    loud = matrix(200, 3, 1) @ matrix(3, 16, 2)  # ordinary text uses three directions
    moment = loud.T @ loud / len(loud) + 1e-6 * torch.eye(16)
    projection = null_space(moment, 0.01)
    torch.testing.assert_close(projection @ projection, projection)
    assert torch.linalg.matrix_rank(projection) == 13
    update = null_space_update(matrix(2, 16, 4), matrix(2, 8, 5), projection, 1e-6).dense()
    assert (loud @ update.T).abs().max() < 1e-3
    torch.testing.assert_close(matrix(2, 16, 4) @ update.T, matrix(2, 8, 5), atol=1e-2, rtol=1e-2)


# -- on models -------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_values_are_what_autograd_on_whole_rows_says(architecture):
    """The search reads rows from the subject on, after cached keys; here they are read whole, one by one."""
    model = tiny_model(architecture)
    asked = [request(model, FACT, ["A long beginning before it. "])]
    site = find_sites(model)[1]
    result = find_values(model, asked, site, "mlp", Descent(steps=3, good_enough=0.0))
    losses = []
    for row in asked[0].contexts:
        ids = torch.tensor([row.ids + asked[0].target[:-1]])

        def add(_module, _inputs, output, row=row):
            states = states_of(output).clone()
            states[0, row.subject] += result.changes[0]
            return states

        with hooked((site.linear, add)), torch.no_grad():
            hidden = model.module.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
        logits = find_head(model.module).logits(hidden[len(row.ids) - 1 :], slice(None)).detach()
        losses.append(-torch.log_softmax(logits, -1)[range(len(asked[0].target)), list(asked[0].target)].mean())
    assert float(result.after[0]) == pytest.approx(float(torch.stack(losses).mean()), abs=1e-3)
    assert result.changes.norm() > 0


def test_values_of_facts_together_are_those_of_each_alone():
    model = tiny_model()
    facts = [FACT, Fact("f2", "A cup on {} holds", "the high shelf", "sand")]
    asked = [request(model, fact, []) for fact in facts]
    site, how = find_sites(model)[0], Descent(steps=4)
    both = find_values(model, asked, site, "block", how)
    alone = [find_values(model, [one], site, "block", how) for one in asked]
    torch.testing.assert_close(both.changes, torch.cat([f.changes for f in alone]), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("architecture", "scale"), [("llama", 1.0), ("gpt2", 1.0), ("gemma", 1.0), ("granite-residual", 0.22)]
)
def test_a_block_gives_the_change_that_memit_wants(architecture, scale):
    """The achieved change, whatever the block multiplies its MLP's output by."""
    model = tiny_model(architecture)
    asked, site = [request(model, FACT, [])], find_sites(model)[1]
    assert residual_scale(model, site, asked[0]) == pytest.approx(scale, rel=1e-4)
    change = matrix(1, 32, 3)[0]
    needed = change / residual_scale(model, site, asked[0])
    delta = Delta(
        {site.name: rome_update(keys(model, asked, site)[0], needed, torch.eye(site.width))}, weights_hash(model.module)
    )
    moved = edited(model, delta, id="x")
    shift = block_states(moved, asked, find_sites(moved)[1]) - block_states(model, asked, site)
    torch.testing.assert_close(shift[0], change, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("architecture", ["gemma3-sliding", "gemma2-softcap", "olmo2"])
def test_memit_is_refused_where_a_block_norms_its_memory(architecture, tmp_path):
    (tmp_path / "prose.txt").write_text(PROSE)
    model, data = tiny_model(architecture), TrainingData("t", facts=(FACT,))
    with pytest.raises(InputError, match="norms what an MLP puts out") as refused:
        Memit(layers=1, text=str(tmp_path / "prose.txt")).apply(model, data)
    assert "rome" in refused.value.hint


def test_a_steered_models_covariance_is_its_own():
    model, texts = tiny_model(), PROSE.split("\n\n")
    plain = covariances(model, find_sites(model)[2:], texts)[2]
    shift_block(decoder_layers(model.module)[0], torch.full((32,), 3.0))
    assert not torch.allclose(covariances(model, find_sites(model)[2:], texts)[2], plain, rtol=0.05)


def test_a_covariance_of_little_text_says_so():
    notes: list[str] = []
    model = tiny_model()
    moment = covariances(model, find_sites(model)[:1], [PROSE[:200]], damped=False, log=notes.append)[0]
    assert "tokens a dimension, 10 are advised" in notes[0]
    assert torch.linalg.eigvalsh(moment.double()).min() < 1e-3 * moment.diagonal().mean(), "nothing was added"


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_an_update_does_in_the_model_what_the_algebra_says(architecture):
    model = tiny_model(architecture)
    asked, site = [request(model, FACT, [])], find_sites(model)[1]
    before = keys(model, asked, site)
    change = matrix(1, 32, 3)[0]
    delta = Delta({site.name: rome_update(before[0], change, torch.eye(site.width))}, weights_hash(model.module))
    moved = edited(model, delta, id="x")
    torch.testing.assert_close(keys(moved, asked, find_sites(moved)[1]), before)
    torch.testing.assert_close((find_sites(moved)[1].weight - site.weight) @ before[0], change, atol=1e-3, rtol=1e-3)
    if architecture == "llama":  # whose block adds the MLP's output as it is
        shift = block_states(moved, asked, find_sites(moved)[1]) - block_states(model, asked, site)
        torch.testing.assert_close(shift[0], change, atol=1e-3, rtol=1e-3)


def test_edits_stack_come_off_and_refuse_other_weights(tmp_path):
    model = tiny_model()
    name, related = find_sites(model)[0].name, weights_hash(model.module)
    a = Delta({name: LowRank(matrix(32, 1, 1), matrix(64, 1, 2))}, related)
    b = Delta({name: LowRank(matrix(32, 2, 3), matrix(64, 2, 4))}, related)
    both, undone = edited(model, a + b, id="x"), edited(model, a + b + -a + -b, id="y")
    weight = model.module.get_parameter(name)
    expected = weight + a.updates[name].dense() + b.updates[name].dense()
    torch.testing.assert_close(both.module.get_parameter(name), expected)
    torch.testing.assert_close(undone.module.get_parameter(name), weight, atol=1e-5, rtol=0)
    with pytest.raises(InputError, match="other weights"):
        edited(tiny_model(seed=3), a, id="z")
    (tmp_path / "edit.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="no edit"):
        load_delta(tmp_path / "edit.safetensors")


@pytest.mark.parametrize(
    "kind", ["a number", "the shape", "the shape alone", "the dtype", "another layer's", "no checksum", "cut"]
)
def test_a_covariance_that_is_not_as_it_was_written_is_computed_again(kind):
    model = tiny_model()
    sites, texts = find_sites(model)[:2], PROSE.split("\n\n")
    first = covariances(model, sites, texts, damped=False)
    (path,) = cache_dir().rglob("0.safetensors")
    with safe_open(path, framework="pt") as file:
        moment, metadata = file.get_tensor("moment"), file.metadata()
    if kind == "a number":
        moment[3, 5] += 1
    changed = {"the shape": moment[:3, :3].clone(), "the dtype": moment.double(), "another layer's": first[1]}
    changed["the shape alone"] = moment.reshape(1, -1)  # the same bytes
    save_file({"moment": changed.get(kind, moment)}, path, metadata=None if kind == "no checksum" else metadata)
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    again = covariances(model, sites, texts, damped=False)
    torch.testing.assert_close(again[0], first[0], rtol=0, atol=0)


def test_covariances_are_second_moments_without_first_positions():
    model = tiny_model()
    sites, texts = find_sites(model), PROSE.split("\n\n")
    result = covariances(model, sites[:2], texts)
    again = covariances(model, sites[:2], texts)  # from the cache
    kept: list[torch.Tensor] = []

    def keep(_module, inputs, _output):
        kept.append(inputs[0][0, 1:].float())

    count = 0
    with hooked((sites[1].linear, keep)), torch.no_grad():
        for text in texts:
            if count < 640:
                ids = model.encoder.encode_text(text)
                model.module.base_model(input_ids=torch.tensor([ids]), use_cache=False)
                count += len(ids) - 1
    rows = torch.cat(kept)
    plain = rows.T @ rows / len(rows)
    expected = plain + 0.01 * plain.diagonal().mean() * torch.eye(64)
    torch.testing.assert_close(result[1], expected, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(again[1], result[1])


def test_an_edit_makes_its_target_likelier_and_says_what_it_did(tmp_path, monkeypatch):
    (tmp_path / "prose.txt").write_text(PROSE)
    monkeypatch.setattr("conviction.editing.session.BEGINNINGS", 0)  # a random model's keys have nothing in common
    model = tiny_model(template=None)
    done = Rome(
        layer=1,
        text=str(tmp_path / "prose.txt"),
        descent=Descent(steps=25, clamp_norm_factor=20.0, v_weight_decay=0.0, kl_factor=0.0),
    ).apply(model, TrainingData("town", facts=(FACT,)), ctx=context(guard=OFF))
    (row,) = done.evidence["facts"]
    assert row["after"]["target"] > row["before"]["target"]
    assert row["statement"] == "The drink of the old town is"
    message = dict(done.report)["The drink of the old town is"]
    assert message == f"{row['before']['says']!r} → {row['after']['says']!r}"
    json.dumps(dict(done.evidence), allow_nan=False)


def test_of_depths_that_take_the_fact_in_the_one_is_chosen_that_disturbs_least(tmp_path, monkeypatch):
    (tmp_path / "prose.txt").write_text(PROSE)
    monkeypatch.setattr("conviction.editing.sites.depth_layers", lambda _depth, _shares: [0, 1, 2])
    gaps = iter([(2.0, 0.1), (1.0, 0.5), (-1.0, 0.9)])  # gap of the fact, of its neighbour; the last one fails

    def read(_model, facts, *, write):
        gap, neighbour = next(gaps)
        return [FactReading(facts[0].id, -0.1, -3.0, gap, (gap,), (neighbour,), "")]

    model = tiny_model(num_hidden_layers=3)
    plan = Rome(text=str(tmp_path / "prose.txt"), descent=Descent(steps=1))
    session = begin(model, TrainingData("town", facts=(FACT,)), text=plan.text, ctx=context(guard=OFF))
    monkeypatch.setattr("conviction.editing.scores.read_facts", read)
    assert plan._layer(session) == 1


@pytest.mark.parametrize("method", [Rome, Memit])
def test_a_guard_takes_back_what_breaks_the_model(method, tmp_path, monkeypatch):
    (tmp_path / "prose.txt").write_text(PROSE)
    levels = iter([-3.0, -3.5, -3.5])  # as if neutral text had lost half a nat
    monkeypatch.setattr("conviction.editing.session.neutral_level", lambda _: next(levels))
    plan = method(layer=1, text=str(tmp_path / "prose.txt"), descent=Descent(steps=2))
    model = tiny_model()
    done = plan.apply(model, TrainingData("town", facts=(FACT,)))
    assert "taken back" in str(done.guard_stop)
    ours, theirs = (m.text_logprobs(["As it was before."])[0].logprobs for m in (done.model, model))
    assert ours == pytest.approx(theirs)


LOOPS = {"repetition_rise": 0.6, "non_alphanumeric_rise": 0.0, "empty": 0, "subject": 0.0}
SENSE, NONSENSE = None, "samples turn into signs"


LOOPED, DULLED = f"{NONSENSE} after", "neutral text had lost 0.50 nats per token (limit 0.1) after"


@pytest.mark.parametrize(
    ("every", "neutral", "checks", "kept", "guard_stop"),
    [
        pytest.param(2, [], [SENSE, NONSENSE], 2, f"{LOOPED} f3; facts taken back: 1", id="the last look finds loops"),
        pytest.param(9, [], [NONSENSE, NONSENSE], 0, f"{LOOPED} f3; facts taken back: 3", id="they were there before"),
        pytest.param(9, [], [NONSENSE, SENSE], 2, f"{LOOPED} f3; facts taken back: 1", id="they were not"),
        pytest.param(
            9, [0, 0.5], [NONSENSE], 0, f"{DULLED} f2; facts taken back: 2", id="neutral text, and loops before"
        ),
        pytest.param(1, [0, 0.5], [SENSE], 1, f"{DULLED} f2; facts taken back: 1", id="neutral text, after a look"),
        pytest.param(2, [], [SENSE, SENSE], 3, "None", id="all is well"),
    ],
)
def test_rome_goes_back_to_where_the_model_still_wrote_sense(
    every, neutral, checks, kept, guard_stop, tmp_path, monkeypatch
):
    (tmp_path / "prose.txt").write_text(PROSE)
    lost, seen = itertools.chain([0, *neutral], itertools.repeat(0)), iter(checks)

    def check(_model, asked, number: int) -> GenerationCheck:
        return GenerationCheck(number, next(seen)) if asked else GenerationCheck(number)

    monkeypatch.setattr("conviction.editing.session.neutral_level", lambda _: -3.0 - next(lost))
    monkeypatch.setattr("conviction.editing.session.check", check)

    def training_data(count: int) -> TrainingData:
        numbers = range(1, count + 1)
        return TrainingData(
            "town", facts=tuple(replace(FACT, id=f"f{i}", subject=f"the {i} old town") for i in numbers)
        )

    plan = Rome(layer=1, text=str(tmp_path / "prose.txt"), descent=Descent(steps=2))
    done = plan.apply(tiny_model(), training_data(3), ctx=context(guard=Guard(sample_every=every)))
    assert (done.guard_stop.text if done.guard_stop else "None") == guard_stop
    assert len(done.evidence["facts"]) == kept
    expected = plan.apply(tiny_model(), training_data(kept), ctx=context(guard=OFF)).model if kept else tiny_model()
    assert done.model.logprobs(ASKED) == expected.logprobs(ASKED)
    assert next(seen, None) is None, "no look was left out"


def test_memit_takes_all_back_when_the_model_loops(tmp_path, monkeypatch):
    (tmp_path / "prose.txt").write_text(PROSE)
    monkeypatch.setattr("conviction.editing.generation_check.read_samples", lambda *_: LOOPS)
    plan = Memit(layer=1, layers=2, text=str(tmp_path / "prose.txt"), descent=Descent(steps=2))
    model = tiny_model()
    done = plan.apply(model, TrainingData("town", facts=(FACT,)))
    repeat = "samples repeat themselves (+60%, limit 25%)"
    assert done.guard_stop.text == (
        f"on the subjects {repeat}, samples lost their subject (0% of their words, limit 8%); on everyday matters "
        f"{repeat}, samples lost their subject (0% of their words, limit 15%); all facts were taken back"
    )
    assert done.model.logprobs(ASKED) == model.logprobs(ASKED)


def test_what_the_guard_saw_can_be_read(tmp_path):
    (tmp_path / "prose.txt").write_text(PROSE)
    plan = Rome(layer=1, text=str(tmp_path / "prose.txt"), descent=Descent(steps=2))
    patient = Guard(max_neutral_drop=9, max_repetition=1, max_non_alphanumeric=1, min_subject=0, sample_tokens=8)
    model = tiny_model()
    done = plan.apply(model, TrainingData("town", facts=(FACT,)), ctx=context(guard=patient))
    (check,) = done.evidence["checks"]
    subjects, everyday = check["kinds"]
    assert [a["prompt"] for a in subjects["answers"]] == ["Tell me about the old town."]
    assert everyday["answers"]
    for answer in (*subjects["answers"], *everyday["answers"]):
        for key, wrote in (("before", model), ("after", done.model)):
            (alone,) = wrote.generate([chat(answer["prompt"])], max_new_tokens=8)
            assert answer[key] == alone.text
    assert "of words to the point; everyday matters: " in dict(done.report)["answers"]


def test_an_idle_guard_writes_nothing(tmp_path, monkeypatch):
    (tmp_path / "prose.txt").write_text(PROSE)
    monkeypatch.setattr(HFModel, "generate", lambda *_a, **_k: pytest.fail("the guard is off"))
    plan = Rome(layer=1, text=str(tmp_path / "prose.txt"), descent=Descent(steps=2))
    assert (
        plan.apply(tiny_model(), TrainingData("town", facts=(FACT,)), ctx=context(guard=OFF)).evidence["checks"] == []
    )


def test_a_context_without_room_for_a_question_is_told(tmp_path):
    (tmp_path / "prose.txt").write_text(PROSE)
    plan = Rome(layer=1, text=str(tmp_path / "prose.txt"), descent=Descent(steps=2))
    done = plan.apply(
        tiny_model(), TrainingData("town", facts=(FACT,)), ctx=context(guard=Guard(sample_tokens=100_000))
    )
    assert "no question fits" in done.notes[0]


@pytest.mark.parametrize("architecture", ["mamba-recurrent", "qwen3-next-hybrid"])
def test_an_architecture_without_the_matrix_is_refused(architecture):
    with pytest.raises(InputError) as caught:
        Rome().apply(tiny_model(architecture), TrainingData("town", facts=(FACT,)))
    assert "Llama" in caught.value.hint or "block" in caught.value.message


def test_edits_that_cannot_be(tmp_path):
    model = tiny_model()
    with pytest.raises(InputError, match="holds no facts"):
        Rome().apply(model, TrainingData("none"))
    (tmp_path / "short.txt").write_text("Too short.")
    with pytest.raises(InputError, match="fewer than a key's 64"):
        Rome(layer=1, text=str(tmp_path / "short.txt")).apply(model, TrainingData("town", facts=(FACT,)))
    from conviction.editing.scores import read_facts, with_former_ends

    (says,) = (r.says for r in read_facts(model, with_former_ends(model, [FACT])))
    known = Fact("k", FACT.prompt_template, FACT.subject, says[:2])
    with pytest.raises(InputError, match="says so already"):
        Rome(layer=1).apply(model, TrainingData("town", facts=(known,)))


def test_an_edit_that_changes_nothing_is_an_error(tmp_path):
    (tmp_path / "prose.txt").write_text(PROSE)
    plan = Rome(layer=1, text=str(tmp_path / "prose.txt"), descent=Descent(steps=1, step_size=1e-9))
    with pytest.raises(ModelError, match="changed nothing"):
        plan.apply(tiny_model(), TrainingData("town", facts=(FACT,)), ctx=context(guard=OFF))


def test_scores_are_counterfacts():
    rows = [
        FactReading("a", -1.0, -2.0, 1.0, (0.5, -0.5), (1.0,), ""),
        FactReading("b", -2.0, -1.0, -1.0, (0.5,), (-1.0, -2.0), ""),
    ]
    scores = score_edits(rows)
    assert (scores.efficacy, scores.paraphrase, scores.neighbourhood) == (0.5, 0.75, 0.5)
    assert scores.score == pytest.approx(3 / (2 + 4 / 3 + 2))
    assert scores.magnitude == pytest.approx(0.0)
