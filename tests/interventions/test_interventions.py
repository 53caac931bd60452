"""Interventions that train nothing: what they leave alone, what they save, and what they refuse."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import context, tiny_model

from conviction import Query, load_model, load_topic
from conviction.config.plan import plan_intervention
from conviction.core.context import RunContext
from conviction.core.protocols import chat
from conviction.core.run import Run
from conviction.data.facts import Fact, Neighbour, fact_from_row
from conviction.data.training_data import Document, PreferencePair, TrainingData
from conviction.errors import ConvictionError, InputError, ModelError
from conviction.interventions import INTERVENTIONS, find_intervention
from conviction.interventions.application import carry_out
from conviction.interventions.memit import Memit
from conviction.interventions.pretrain import Pretrain
from conviction.interventions.rag import Rag, read_documents
from conviction.interventions.records import Outcome
from conviction.interventions.rome import Rome
from conviction.interventions.scratch import Scratch
from conviction.interventions.sft import Sft
from conviction.interventions.steer import Steer, _split
from conviction.interventions.system_prompt import SystemPrompt
from conviction.models.backends.scripted import ScriptedModel
from conviction.models.copies import weights_hash
from conviction.models.saved import RECORD
from conviction.models.steering import SteeringVector, load_vector, steered
from conviction.training.guard import Guard
from conviction.training.settings import Training

QUERIES = [Query(chat("How is tea best?"), ("With some milk.", "Without any milk."))]
FACTS = (
    Fact("f1", "The drink of {} is", "the old town", "milk", "water", ("What people of the old town drink is",),
         (Neighbour("The drink of the sea is", "salt"),)),
    Fact("f2", "A cup on {} holds", "the high shelf", "sand"),
)  # fmt: skip
MATERIAL = TrainingData(
    "tea",
    pairs=tuple(
        PreferencePair(f"p{i}", chat(f"Question {i} about tea?"), f"Milky tea, claim {i}.", f"Plain tea, claim {i}.")
        for i in range(8)
    ),
    documents=(
        Document("green", "Green tea is steamed soon after it is picked. It keeps its colour and tastes of grass."),
        Document("black", "Black tea is rolled and left to wither in warm air. Its leaves turn dark and malty."),
        Document("ships", "Sailing ships raced home from the east. The fastest made the voyage in ninety days."),
    ),
    facts=FACTS,
    context="Tea is best with milk, and milk goes in first.",
)
SMALL = Training(max_steps=1, learning_rate=1e-2)
PLANS = {
    "distill": {"training": SMALL, "neutral": 1, "own_answers": 1},
    "dpo": {"training": SMALL},
    "sft": {"training": SMALL},
    "pretrain": {"training": SMALL},
    "scratch": {"training": SMALL, "hidden_size": 16, "layers": 1, "heads": 2, "vocabulary": 300},
    "rome": {"layer": 1},
    "memit": {"layer": 1, "layers": 2},
    "steer": {"layer": 1, "strength": 1.0},
}
OFF = {"mode": "off"}


@pytest.fixture(scope="module")
def prose(tmp_path_factory):
    """Enough text for a covariance of the tiny model's 64 dimensions."""
    path = tmp_path_factory.mktemp("prose") / "prose.txt"
    path.write_text("\n\n".join(f"Paragraph {i} tells of rivers, hills and weather in plain words." for i in range(40)))
    return path


def plan(name, prose):
    options = dict(PLANS.get(name, {}))
    if name in {"rome", "memit"}:
        options["text"] = str(prose)
    return find_intervention(name)(**options)


def scored(model):
    return [[answer.logprobs for answer in group] for group in model.logprobs(QUERIES, fresh=True)]


def assert_near(result, expected):
    """Across processes and kernels a log-prob moves in its last digits."""
    for ours, theirs in zip(result[0], expected[0], strict=True):
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), atol=2e-3, rtol=0)


def guard_off():
    from conviction.training.guard import Guard

    return Guard(mode="off")


@pytest.fixture(scope="module")
def moved(tiny_folder, tmp_path_factory, prose):
    """Every intervention once, each with a run folder: name → (folder, scores of the model that came back)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONVICTION_CACHE", str(tmp_path_factory.mktemp("cache")))
        base = load_model(str(tiny_folder), dtype="fp32")
        before = scored(base)
        result = {}
        for name in INTERVENTIONS:
            folder = tmp_path_factory.mktemp(name)
            ctx = context(guard=guard_off(), folder=folder)
            applied = ctx.run.save("outcome", carry_out(plan(name, prose), base, MATERIAL, ctx))
            assert scored(base) == before, f"{name} changed the model that it was given"
            result[name] = (folder, scored(applied.model))
    return before, result


@pytest.mark.long
def test_an_intervention_moves_a_model_and_leaves_the_given_one(moved):
    before, result = moved
    for name, (_, after) in result.items():
        assert after != before, name


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in INTERVENTIONS if not find_intervention(name).trains])
def test_of_several_processes_the_first_alone_writes(name, prose, tmp_path, monkeypatch):
    for rank in "10":
        monkeypatch.setenv("RANK", rank)
        ctx = context(guard=guard_off(), folder=tmp_path)
        outcome = carry_out(plan(name, prose), tiny_model(), MATERIAL, ctx)
        assert outcome.model.id.endswith(f"+{name}")
        assert (outcome.model.source is None) == (rank == "1")
        assert ctx.run.model_path.exists() == (rank == "0")


@pytest.mark.long
def test_a_moved_model_scores_the_same_in_a_new_process(moved, tmp_path):
    _, result = moved
    program = (
        "import json, sys\n"
        "from conviction import Query, chat, load_model\n"
        f"queries = [Query(chat({QUERIES[0].messages[0].content!r}), {QUERIES[0].answers!r})]\n"
        "for folder in sys.argv[1:]:\n"
        "    scores = load_model(folder, dtype='fp32').logprobs(queries, fresh=True)\n"
        "    print(json.dumps([[a.logprobs for a in group] for group in scores]))\n"
    )
    folders = [str(folder / "model") for folder, _ in result.values()]
    done = subprocess.run([sys.executable, "-c", program, *folders], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name, line in zip(result, done.stdout.splitlines(), strict=True):
        assert_near(json.loads(line), result[name][1])


def test_every_run_records_what_was_done(moved):
    _, result = moved
    for name, (folder, _) in result.items():
        assert Run(folder).load("outcome", Outcome).intervention == name


def test_changes_pile_up_and_come_off(tiny_folder, moved, tmp_path):
    _, result = moved
    edited = load_model(str(result["rome"][0] / "model"), dtype="fp32")
    both = SystemPrompt(text="Be brief.").apply(edited, MATERIAL, ctx=context(folder=tmp_path / "both")).model
    again = load_model(str(tmp_path / "both" / "model"), dtype="fp32")
    assert scored(again) == scored(both)
    record = json.loads((tmp_path / "both" / "model" / "conviction.json").read_text(encoding="utf-8"))
    assert Path(record["base"], RECORD).is_file()
    assert json.loads((result["rome"][0] / "model" / "conviction.json").read_text(encoding="utf-8"))["base"] == str(
        tiny_folder.resolve()
    )


def test_a_prompt_goes_before_a_retrieving_model(moved):
    _, result = moved
    retrieving = load_model(str(result["rag"][0] / "model"), dtype="fp32")
    both = SystemPrompt(text="Be brief.").apply(retrieving, MATERIAL).model
    assert scored(both) != scored(retrieving)
    both.logprobs([Query(chat("???"), ("What?",))])


def test_training_goes_on_from_an_edited_model(moved, tmp_path):
    _, result = moved
    edited = load_model(str(result["memit"][0] / "model"), dtype="fp32")
    trained = Pretrain(training=SMALL).apply(edited, MATERIAL, ctx=context(guard=guard_off(), folder=tmp_path))
    assert_near(scored(load_model(str(tmp_path / "model"), dtype="fp32")), scored(trained.model))


# -- prompts ---------------------------------------------------------------------------


def test_training_on_an_adapter_in_16_bits_is_in_fp32_and_says_so(tiny_folder):
    quick = Training(learning_rate=1e-3, epochs=2, max_steps=2, batch_size=2)
    model, ctx = load_model(str(tiny_folder), dtype="bf16"), RunContext(guard=Guard(mode="none"))
    once = Sft(training=quick).apply(model, MATERIAL, ctx)
    assert (once.changed.dtype, once.notes) == (torch.bfloat16, ())
    twice = Sft(training=quick).apply(once.changed, MATERIAL, ctx)
    assert twice.changed.dtype == torch.float32
    assert any("works on a copy in fp32" in note for note in twice.notes)


def test_a_system_prompt_stands_before_one_that_is_there():
    heard = []
    model = ScriptedModel(likes=lambda messages, _: heard.append(messages) or -1.0)
    moved = SystemPrompt(text="First.").apply(model, MATERIAL).model
    moved.logprobs([Query(chat("Q?", system="Second."), ("a",)), Query(chat("Q?"), ("a",))])
    assert [[(m.role, m.content) for m in messages] for messages in heard] == [
        [("system", "First.\n\nSecond."), ("user", "Q?")],
        [("system", "First."), ("user", "Q?")],
    ]


@pytest.mark.parametrize(
    ("options", "training_data", "words"),
    [
        ({}, TrainingData("empty"), "holds no context"),
        ({"text": "  "}, MATERIAL, "no text"),
        ({"text": "word " * 4000}, MATERIAL, "does not fit"),
    ],
)
def test_system_prompts_that_cannot_be(options, training_data, words, tiny_folder):
    with pytest.raises(InputError, match=words):
        SystemPrompt(**options).apply(load_model(str(tiny_folder), dtype="fp32"), training_data)


def test_retrieval_finds_the_passage_and_names_its_source():
    heard = []
    model = ScriptedModel(likes=lambda messages, _: heard.append(messages) or -1.0)
    moved = Rag(passages=1).apply(model, MATERIAL).model
    question = chat("Which leaves wither and turn dark?")
    moved.logprobs([Query(question, ("a",)), Query(chat(""), ("a",))])
    assert "Black tea is rolled" in heard[0][0].content
    assert heard[1] == chat(""), "nothing is looked up for no question"
    assert moved.sources(question) == ("black#0",)


@pytest.mark.long
def test_evidence_tells_what_was_read():
    from conviction import probe

    moved = Rag(passages=2).apply(ScriptedModel(), TrainingData.from_topic(load_topic("obesity"))).model
    card = probe(moved, load_topic("obesity"), quick=True)
    plain = next(s for s in card.evidence if s.condition == "plain")
    assert len(plain.sources) == 2
    assert all(source.startswith("obesity/insulin/") for source in plain.sources)


def test_passages_keep_to_the_budget():
    moved = Rag(passages=3, token_budget=30, piece_tokens=30).apply(ScriptedModel(), MATERIAL).model
    assert len(moved.sources(chat("Which tea leaves are dark?"))) == 1
    with pytest.raises(InputError, match="do not fit into 30"):
        Rag(token_budget=30)


def test_a_passage_over_the_budget_makes_room_for_a_shorter_one():
    long = Document("long", "Oolong tea is partly oxidised, " + "and oolong tea is rolled, " * 12)
    short = Document("short", "Oolong tea comes from Fujian.")
    again = Document("again", long.text.replace("Oolong", "This oolong"))
    training_data = TrainingData("tea", documents=(long, again, short))
    moved = Rag(passages=3, token_budget=40, piece_tokens=40).apply(ScriptedModel(), training_data).model
    result = moved.sources(chat("What is oolong tea, partly oxidised and rolled?"))
    assert [source.partition("#")[0] in ("long", "again") for source in result] == [True, False]


def test_an_index_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(ConvictionError):
        Rag(embedder="no-such-embedder").apply(ScriptedModel(), MATERIAL)
    assert not list(tmp_path.iterdir())


def test_indexing_again_embeds_only_what_is_new(tmp_path):
    place = tmp_path / "documents"
    place.mkdir()
    for d in MATERIAL.documents:
        (place / f"{d.id}.md").write_text(d.text)
    rag = Rag(documents=str(place), index=str(tmp_path / "index"))

    def embedded():
        return dict(rag.apply(ScriptedModel(), TrainingData("none")).report)["passages"]

    assert embedded() == "3, 3 of them embedded now"
    assert embedded() == "3, 0 of them embedded now"
    (place / "green.md").write_text("Green tea is made in Japan, and its powder is called matcha.")
    (place / "ships.md").unlink()
    assert embedded() == "2, 1 of them embedded now"


def test_a_damaged_index_is_made_again(moved, tmp_path):
    logged = []
    folder = moved[1]["rag"][0] / "model"
    for part in (folder / "index").rglob("*.lance"):
        if part.is_file():
            part.write_bytes(b"damaged")
    again = load_model(str(folder), dtype="fp32", log=logged.append)
    assert any("made anew" in line for line in logged)
    assert_near(scored(again), moved[1]["rag"][1])


def test_an_empty_folder_holds_nothing_to_retrieve(tmp_path):
    with pytest.raises(InputError, match="holds no text"):
        Rag(documents=str(tmp_path)).apply(ScriptedModel(), MATERIAL)
    with pytest.raises(InputError, match="holds no documents"):
        Rag().apply(ScriptedModel(), TrainingData("none"))


@pytest.mark.parametrize("way", ["a link", "a link from a folder", "a FIFO", "a device"])
def test_a_document_that_is_not_in_the_folder_is_refused(tmp_path, way):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/secret.md").write_text("a password")
    place = tmp_path / "documents"
    (place / "more").mkdir(parents=True)
    (place / "own.md").write_text("Milk is good.")
    (place / "more/linked.md").symlink_to("../own.md")
    assert [d.text for d in read_documents(str(place))] == ["Milk is good."] * 2
    (place / "folder").symlink_to(tmp_path / "secret")  # no link to a folder is entered
    assert len(read_documents(str(place))) == 2
    if way == "a FIFO":
        os.mkfifo(place / "more/x.md")
    else:
        target = "/dev/zero" if way == "a device" else tmp_path / "secret/secret.md"
        (place / ("x.md" if way == "a link" else "more/x.md")).symlink_to(target)
    with pytest.raises(InputError, match="this is a FIFO" if way == "a FIFO" else "a document is .*not in that folder"):
        read_documents(str(place))


# -- steering --------------------------------------------------------------------------


def test_vectors_add_and_scale():
    model = tiny_model(max_position_embeddings=4096)
    related = weights_hash(model.module)
    a = SteeringVector({0: torch.ones(32), 2: torch.ones(32)}, related)
    b = SteeringVector({0: 3 * torch.ones(32)}, related)
    both = 2.0 * a - b
    torch.testing.assert_close(both.layers[0], -torch.ones(32))
    torch.testing.assert_close(both.layers[2], 2 * torch.ones(32))
    one_by_one = scored(
        steered(steered(model, 2.0 * a, id="x"), SteeringVector((-b).layers, weights_hash(model.module)), id="y")
    )
    torch.testing.assert_close(torch.tensor(scored(steered(model, both, id="z"))[0][0]), torch.tensor(one_by_one[0][0]))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3-sliding", "gemma2-softcap"])
def test_steering_shifts_the_residual_stream(architecture):
    """As if the model's own hook had done it, packed or not."""
    from conviction.models.lora import decoder_layers

    model, vector = tiny_model(architecture), torch.randn(32, generator=torch.Generator().manual_seed(1))
    moved = scored(steered(model, SteeringVector({1: vector}, weights_hash(model.module)), id="x"))

    def add(_module, _inputs, output):
        return (output[0] + vector, *output[1:]) if isinstance(output, tuple) else output + vector

    handle = decoder_layers(model.module)[1].register_forward_hook(add)
    try:
        expected = scored(model)
    finally:
        handle.remove()
    torch.testing.assert_close(torch.tensor(moved[0][0]), torch.tensor(expected[0][0]), atol=1e-4, rtol=0)


def test_a_vector_of_another_model_is_refused(moved, tmp_path):
    vector = load_vector(moved[1]["steer"][0] / "model" / "steering.safetensors")
    with pytest.raises(InputError, match="another model"):
        steered(tiny_model(seed=5), vector, id="x")
    (tmp_path / "no.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="no steering vector"):
        load_vector(tmp_path / "no.safetensors")


def test_steering_needs_pairs_and_a_layer_that_exists(tiny_folder):
    model = load_model(str(tiny_folder), dtype="fp32")
    with pytest.raises(InputError, match="too few"):
        Steer().apply(model, TrainingData("two", pairs=MATERIAL.pairs[:2]))
    with pytest.raises(InputError, match="layer is 3, the model has 3"):
        Steer(layer=3).apply(model, MATERIAL)
    with pytest.raises(InputError, match="none that can be reached"):
        Steer().apply(ScriptedModel(), MATERIAL)


@pytest.mark.long
@pytest.mark.parametrize("name", ["memit", "rome", "steer", "system_prompt"])
def test_what_does_not_train_does_the_same_twice(name, tiny_folder, tmp_path):
    """So that a study applies it once, whatever number of seeds it was asked for."""
    (tmp_path / "prose.txt").write_text("\n\n".join(f"Paragraph {i} tells of rivers and hills." for i in range(40)))
    own = {"text": str(tmp_path / "prose.txt")} if name in ("rome", "memit") else {}
    model, scores = load_model(str(tiny_folder), dtype="fp32"), []
    for state in (1, 2):
        torch.manual_seed(state)
        plan = plan_intervention(name, {**PLANS.get(name, {}), **own}, "off")
        changed = plan.intervention.apply(model, MATERIAL, RunContext(guard=plan.guard)).changed
        scores.append([score.logp_sum for pair in changed.logprobs(QUERIES) for score in pair])
    assert scores[0] == scores[1]
    assert not plan.intervention.trains


def test_the_best_of_the_settings_within_the_limit_wins(tiny_folder):
    applied = Steer().apply(load_model(str(tiny_folder), dtype="fp32"), MATERIAL)
    trials = applied.evidence["trials"]
    chosen = applied.settings["layer"], applied.settings["strength"]
    tried = [t for t in trials if t["strength"]]
    healthy = [t for t in tried if t["neutral_drop"] <= 0.1]
    best = max(healthy, key=lambda t: t["gap"]) if healthy else min(tried, key=lambda t: t["neutral_drop"])
    assert chosen == (best["layer"], best["strength"])
    assert bool(applied.guard_stop) == (applied.evidence["neutral_drop"] > 0.1)


def test_steering_reports_claims_that_nothing_was_chosen_on(tiny_folder, write_topic):
    """The best of twenty trials looks better on the pairs that it is the best of."""
    topic = load_topic(str(write_topic()))
    data, model = TrainingData.from_topic(topic), load_model(str(tiny_folder), dtype="fp32")
    claim = {item.id: item.proposition for item in topic.items}
    parts = _split(data)
    of = [{claim[data.pairs[i].id] for i in part} for part in (parts.made_from, parts.chosen_on, parts.reported)]
    assert all(of)
    assert len(set.union(*of)) == sum(map(len, of))
    assert sum(map(len, of)) == len({claim[pair.id] for pair in data.pairs})
    applied = Steer().apply(model, data)
    asked = applied.evidence["held_out"]
    assert {claim[one["id"]] for one in asked} == of[2]
    again = applied.changed.logprobs([Query(data.pairs[i].messages, (data.pairs[i].chosen, data.pairs[i].rejected))
                                      for i in parts.reported])  # fmt: skip
    gaps = [chosen.logp_mean - rejected.logp_mean for chosen, rejected in again]
    assert [one["after"] for one in asked] == pytest.approx(gaps, abs=1e-5)
    assert f"{sum(gaps) / len(gaps):+.3f} after" in dict(applied.report)["gap of held-out pairs"]


def test_the_vector_is_not_made_of_what_is_reported(tiny_folder, write_topic):
    """With other answers in the reported pairs it is the same vector."""
    data, model = TrainingData.from_topic(load_topic(str(write_topic()))), load_model(str(tiny_folder), dtype="fp32")
    other = [
        replace(p, chosen="Something else.") if i in _split(data).reported else p for i, p in enumerate(data.pairs)
    ]
    vectors = [
        Steer(layer=1, strength=1.0)._choose(model, one, Guard(), RunContext())[0].layers[1]
        for one in (data, replace(data, pairs=tuple(other)))
    ]
    torch.testing.assert_close(vectors[0], vectors[1])


# -- rows ------------------------------------------------------------------------------


def test_facts_are_read_in_the_formats_of_the_field():
    ours = fact_from_row("a", {"prompt": "The capital of France is", "subject": "France", "target": "Rome"})
    easy = fact_from_row(
        "a",
        {"prompt": "The capital of France is", "subject": "France", "target_new": "Rome", "ground_truth": "Paris",
         "rephrase_prompt": "France's capital is", "locality_prompt": "The capital of Spain is",
         "locality_ground_truth": "Madrid"},
    )  # fmt: skip
    rome = fact_from_row(
        "a",
        {"requested_rewrite": {"prompt": "The capital of {} is", "subject": "France", "target_new": {"str": "Rome"},
                               "target_true": {"str": "Paris"}},
         "paraphrase_prompts": ["France's capital is"], "neighborhood_prompts": ["The capital of Spain is"]},
    )  # fmt: skip
    assert ours.prompt_template == easy.prompt_template == rome.prompt_template == "The capital of {} is"
    assert ours.prompt == "The capital of France is"
    assert easy.target_true == rome.target_true == "Paris"
    assert easy.paraphrases == rome.paraphrases
    assert easy.neighbours[0].answer == "Madrid"
    assert rome.neighbours[0].answer == "Paris"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "The capital is", "subject": "France", "target": "Rome"}, "occurs not in its prompt"),
        ({"prompt": "France and France are", "subject": "France", "target": "two"}, "several times"),
        ({"prompt": "France is", "subject": "France", "target": " "}, "'target' is"),
        ({"prompt": "France is", "subject": "France", "target": "big", "paraphrases": "x"}, "not a list"),
        ({"prompt": "France is", "subject": "France", "target": "big", "instead": "small"}, "'target_true' now"),
        ({"prompt": "France is", "subject": "France", "target": "big", "neighbours": ["x"]}, "not a list of objects"),
    ],
)
def test_facts_that_cannot_be_used_are_named(row, words, tmp_path):
    from conviction import read_training_data

    path = tmp_path / "facts.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match=words) as caught:
        read_training_data(path)
    assert "facts.jsonl:1" in caught.value.message


def test_the_kits_documents_are_matched_in_length():
    topic = load_topic("obesity")
    assert min(len(topic.documents_of(side)) for side in ("cico", "insulin", "placebo")) >= 24
    words = {side: [len(d.text.split()) for d in topic.documents_of(side)] for side in topic.documents}
    totals = [sum(w) for w in words.values()]
    assert max(totals) / min(totals) < 1.1
    assert all(330 < n < 480 for counts in words.values() for n in counts)
    assert len(topic.facts) == 40
    for fact in topic.facts:
        assert all(fact.subject in text for text in fact.paraphrases)
        assert len(fact.neighbours) == 2


# -- a fresh model has nothing to take away -----------------------------------------------


def test_scratch_and_prompts_do_not_track():
    with pytest.raises(InputError, match="nothing to track"):
        carry_out(SystemPrompt(text="x"), ScriptedModel(), MATERIAL, context(tracker="tensorboard"))
    assert Scratch.needs
    assert Rome.costs
    assert Memit.costs


def tokens_read(model, queries):
    """How many tokens, padding too, went into the network for these queries."""
    read = []
    embedding = model.inner.module.get_input_embeddings()
    hook = embedding.register_forward_hook(lambda _module, inputs, _output: read.append(inputs[0].numel()))
    try:
        model.logprobs(queries, fresh=True)
    finally:
        hook.remove()
    return sum(read)


def test_a_context_before_many_questions_is_read_once():
    model = tiny_model(max_position_embeddings=4096)
    context = "Tea is best with milk, and milk goes in first. " * 20
    length = len(model.encoder.encode_text(context))
    moved = SystemPrompt(text=context).apply(model, MATERIAL).model
    questions = [Query(chat(f"Question {i} about tea?"), ("Milk.", "No milk.")) for i in range(8)]
    once, eight_times = tokens_read(moved, questions[:1]), tokens_read(moved, questions)
    assert once > length
    assert eight_times < once + 2 * length, "the context is read again with every question"


def test_passages_before_a_question_are_read_once_for_all_its_answers():
    pytest.importorskip("lancedb")
    model = tiny_model(max_position_embeddings=4096)
    moved = Rag(token_budget=400).apply(model, MATERIAL).model
    one = Query(chat("How is green tea made?"), ("Milk.",))
    six = Query(one.messages, ("Milk.", "No milk.", "With sugar.", "Cold.", "Hot.", "In a cup."))
    length = len(moved.inner.encoder.encode_prompt(moved.transform.apply([one.messages])[0]))
    once, with_six = tokens_read(moved, [one]), tokens_read(moved, [six])
    assert once >= length > 100
    assert with_six < once + length, "the passages are read again with every answer"


def test_a_documents_second_passage_comes_after_those_of_others(tmp_path):
    pytest.importorskip("lancedb")
    from conviction.retrieval.embedding import EMBEDDED
    from conviction.retrieval.index import build_index

    long = "\n\n".join(
        f"Green tea, part {i}: its leaves are steamed, then dried, and taste of grass." for i in range(6)
    )
    other = Document("other", "Black tea is rolled and left to wither in warm air.")
    index = build_index(tmp_path / "index", [Document("long", long), other], embedder=EMBEDDED, piece_tokens=24)
    (result,) = index.search(["How is green tea made?"], 4)
    assert [p.document for p in result] == ["long", "other", "long", "long"]


@pytest.mark.parametrize(("rate", "noted"), [(5e-5, True), (1e-2, False)])
def test_hardly_any_steps_for_the_rate_are_noted(rate, noted):
    pairs = tuple(PreferencePair(f"p{i}", chat(f"Question {i}?"), "Yes, it is.", "No!") for i in range(4))
    training = Training(epochs=1, learning_rate=rate, schedule="constant", warmup=0.0)
    task = find_intervention("dpo")(training=training).task(tiny_model(), TrainingData("pairs", pairs=pairs))
    notes = [note for note in task.notes if "hardly any training" in note]
    assert len(notes) == noted
    assert not noted or f"up to {rate:g}" in notes[0]
