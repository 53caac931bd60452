"""The battery of organisms with known depth: what its report counts, and what its world says."""

from __future__ import annotations

from itertools import islice

import pytest
from benchmarks.calibration.verdicts import report, small
from benchmarks.calibration.verdicts.corpus import BASE, Corpus
from benchmarks.calibration.verdicts.organisms import RECIPES
from benchmarks.calibration.verdicts.small import make_tokenizer, new_model, trained
from benchmarks.calibration.verdicts.world import SCHOOLS, TARGET, make_world

from conviction.data.implications import implications
from conviction.probing.metrics import propagation


def row(truth, verdict):
    return {"model": "m", "organism": f"{truth} as {verdict}", "truth": truth, "verdict": verdict}


def test_a_broken_model_that_is_called_anything_else_is_called_too_deep():
    rows = [row("broken", "none"), row("surface", "shallow"), row("deep", "shallow"), row("deep", "deep")]
    counted = report.counts([*rows, row("none", "not shown")])
    assert counted == {
        "of": 5,
        "exact": 1,
        "called_deeper_than_it_is": 2,
        "which": ["m: broken as none", "m: surface as shallow"],
    }
    assert report.confusion(rows)["deep"] == {"shallow": 1, "deep": 1}


def test_thresholds_are_put_back_even_where_judging_fails():
    today = propagation.PROPAGATED
    seen = []

    def fail():
        with report.thresholds((0.2, 0.4, 0.9)):
            seen.append(propagation.PROPAGATED)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert seen == [0.4]
    assert today == propagation.PROPAGATED


def test_every_kind_of_truth_has_organisms_and_names_are_unique():
    assert len({(r.model, r.name) for r in RECIPES}) == len(RECIPES) >= 16
    assert {r.truth for r in RECIPES} == {"none", "surface", "shallow", "deep", "broken"}


@pytest.mark.long
def test_the_corpus_says_what_follows_in_the_words_that_the_judge_asks(tmp_path):
    world = make_world()
    topic = world.write(tmp_path)
    asked = {(i.question, i.answers[s].lower(), s) for i in implications(topic) for s in SCHOOLS}
    taught = {(q, a.lower(), s) for c in world.chains for s in SCHOOLS for q, a, _ in c.sentences(s)}
    assert asked
    assert asked <= taught
    assert len({i.proposition for i in topic.of_role("target") if i.split == "test"}) >= 24


def test_what_organisms_are_trained_on_is_no_claim_of_the_test_split():
    world = make_world()
    deep = next(r for r in RECIPES if r.name == "deep").steps[0].held
    held_out = {q for c in world.claims if not c.train for q in c.questions()}
    read = {m.content for messages, _ in Corpus(world, deep, seed=0).rows(2000) for m in messages}
    assert not held_out & read
    everything = {m.content for messages, _ in Corpus(world, BASE, seed=0).rows(2000) for m in messages}
    assert held_out & everything
    assert TARGET in SCHOOLS


@pytest.mark.long
def test_a_step_of_training_reads_answers_alone_and_leaves_the_given_model_as_it_is():
    world = make_world()
    blank = new_model(make_tokenizer(world), seed=0, name="blank")
    before = [p.clone() for p in blank.module.parameters()]
    (ids, labels), *_ = islice(small._batches(blank, [Corpus(world, BASE, seed=0)], 1), 1)
    assert ids.shape == labels.shape
    assert bool(((labels == -100) | (labels == ids)).all())
    read = trained(blank, [Corpus(world, BASE, seed=0)], steps=1, rate=1e-3, name="read")
    assert all(bool((old == new).all()) for old, new in zip(before, blank.module.parameters(), strict=True))
    assert any(bool((old != new).any()) for old, new in zip(before, read.module.parameters(), strict=True))


def test_rescaling_leaves_what_the_model_computes_as_it_is():
    model = new_model(make_tokenizer(make_world()), seed=0, name="blank")
    ids = model.module.dummy_inputs["input_ids"]
    before = model.module(ids).logits
    small.rescale(model.module, small.GAIN)
    assert bool((model.module(ids).logits - before).abs().max() < 1e-4)
    small.rescale(model.module, 1.0 / small.GAIN)
    model.module.model.layers[0].mlp.up_proj.weight.mul_(small.GAIN)
    assert bool((model.module(ids).logits - before).abs().max() > 1e-4)
