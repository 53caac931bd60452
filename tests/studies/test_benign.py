"""Training on top of a change, on a tiny model: a reference, its erosion, and the reversal curve."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from conviction import load_model, load_topic
from conviction.core.context import RunContext
from conviction.core.run import Run
from conviction.probing.depth import measure_depth
from conviction.studies import benign
from conviction.studies.benign import measure_after_benign, measure_reference, measure_reversal


@pytest.fixture
def shared(tea, tmp_path, tiny_folder):
    model, topic, ctx = load_model(str(tiny_folder), dtype="fp32"), load_topic(str(tea)), RunContext()
    baseline = measure_depth(model, topic, kinds=["change"])
    design = SimpleNamespace(worn_for=1)
    run = Run(tmp_path / "study")
    return SimpleNamespace(
        model=model, topic=topic, ctx=ctx, baseline=baseline, design=design, run=run, after_benign={}, references=[]
    )


def arm(shared):
    """A model with weights of its own, and its measurements."""
    changed = benign._benign(shared, shared.model, [(1, 1e-4, "text")])
    return changed, measure_depth(changed, shared.topic, base=shared.baseline, kinds=["change"])


def test_the_reference_is_trained_until_it_has_shifted_and_eroded_once_a_study(shared, monkeypatch):
    trained, steps = [], []
    real_sft, real_benign = benign.Sft.apply, benign._benign
    monkeypatch.setattr(benign.Sft, "apply", lambda *a: trained.append(1) or real_sft(*a))
    monkeypatch.setattr(benign, "_benign", lambda s, m, n: steps.append(n) or real_benign(s, m, n))
    monkeypatch.setattr(benign, "eroded", lambda *_: len(steps) == 2)
    reference = measure_reference(shared, goal=-1e9)
    assert (len(trained), steps) == (1, [[(1, 1e-4, "text")], [(1, 1e-4, "text")]])
    assert reference.provenance["benign_stages"] == [(1, 1e-4, "text"), (1, 1e-4, "text")]
    assert set(reference.names("")) == {"reference", "reference-benign", "leak-of-reference"}
    rows = {sample.id for sample in reference.evidence}
    assert {name for m in reference.measurements for name in m.samples} <= rows
    assert measure_reference(shared, goal=1.0) is reference
    shared.references.clear()
    again = measure_reference(shared, goal=1.0)  # read back from the study's folder
    assert again.measurements == reference.measurements
    assert benign.benign_stages(shared, again) == reference.provenance["benign_stages"]
    assert len(trained) == 1


@pytest.mark.long
def test_where_nothing_erodes_every_stage_is_made_and_no_more(shared, monkeypatch):
    monkeypatch.setattr(benign, "eroded", lambda *_: False)
    monkeypatch.setattr(benign, "REFERENCE_TIMES", 2)
    monkeypatch.setattr(benign, "STAGES", ((1, 1e-4, "text"), (2, 1e-3, "facts")))
    assert measure_reference(shared, goal=1e9).provenance["benign_stages"] == [(1, 1e-4, "text"), (2, 1e-3, "facts")]


def test_an_arm_goes_through_the_references_stages_and_without_one_through_the_first(shared, tmp_path, monkeypatch):
    stages = []
    monkeypatch.setattr(benign, "_benign", lambda _s, model, n: stages.append(n) or model)
    changed, _ = benign._read_on(shared, shared.model, _neutral(), 1, 0)
    reference = shared.baseline.model_copy(
        update={"provenance": {"benign_stages": [[1, 1e-4, "text"], [2, 1e-3, "facts"]]}}
    )
    measure_after_benign(shared, changed, Run(tmp_path / "arm"), reference)
    measure_after_benign(shared, changed, Run(tmp_path / "other"), None)
    assert stages == [[(1, 1e-4, "text"), (2, 1e-3, "facts")], [(1, 1e-4, "text")]]


def test_benign_training_reads_neutral_text_then_facts_if_the_kit_has_any(shared, monkeypatch):
    read = []
    for method in (benign.Sft, benign.Pretrain):
        real = method.apply
        monkeypatch.setattr(
            method, "apply", lambda s, m, data, ctx, real=real: read.append(data) or real(s, m, data, ctx)
        )
    stages = [(1, 1e-4, "text"), (1, 1e-4, "facts")]
    benign._benign(shared, shared.model, stages)
    answers = {i.answers["true"] for i in shared.topic.of_role("neighbour", "control") if i.split == "train"}
    assert read[0].documents
    assert {pair.chosen for pair in read[1].pairs} <= answers
    assert read[1].pairs
    monkeypatch.setattr(benign, "placebo_data", lambda *_, **__: None)
    benign._benign(shared, shared.model, stages)
    assert read[3].documents == read[0].documents


def _neutral():
    return benign.TrainingData("x", documents=(benign.Document("d", "Some words about nothing in particular. " * 9),))


def test_a_reversal_curve_has_a_point_a_dose_until_half_is_left(shared, tmp_path, monkeypatch):
    changed, after = arm(shared)
    monkeypatch.setattr(benign, "REVERSAL_STEPS", (1, 1, 1))
    monkeypatch.setattr(benign, "halved", lambda *_: False)
    whole = measure_reversal(shared, changed, Run(tmp_path / "whole"), after)
    doses = [int(name.removeprefix("reversal:")) for name in whole.names("")]
    assert len(doses) == 3
    assert doses == sorted(set(doses))
    gaps = [list(whole.of(name).values()) for name in whole.names("")]
    assert gaps[0] != gaps[1] != gaps[2]
    assert {name for m in whole.measurements for name in m.samples} <= {s.id for s in whole.evidence}
    monkeypatch.setattr(benign, "halved", lambda *_: True)
    assert len(measure_reversal(shared, changed, Run(tmp_path / "half"), after).names("")) == 1


def test_no_curve_where_the_weights_are_the_untouched_models_or_nothing_is_wanted(shared, tmp_path):
    assert measure_reversal(shared, shared.model, Run(tmp_path / "a"), shared.baseline) is None
    shared.design.worn_for = 0
    changed, after = arm(SimpleNamespace(**{**vars(shared), "design": SimpleNamespace(worn_for=1)}))
    assert measure_reversal(shared, changed, Run(tmp_path / "b"), after) is None
    assert measure_reference(shared, goal=0.1) is None
