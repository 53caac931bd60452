"""What is read back from a folder belongs to the call: to its weights, its data and the files that it names."""

from __future__ import annotations

import json
import shutil
from functools import partial

import pytest
from filelock import FileLock
from tiny import pairs, tiny_model

from conviction import Fact, Run, RunContext, SystemPrompt, TrainingData, apply, forecast, load_model, localize, probe
from conviction import study as run_study
from conviction.errors import RunError
from conviction.interventions.records import Outcome
from conviction.probing.records import Scorecard
from conviction.verbs.folders import Place


@pytest.fixture
def topic(write_topic) -> str:
    return str(write_topic())


def test_other_weights_under_the_same_name_are_another_probe(topic, tmp_path):
    one, other = tiny_model(seed=0), tiny_model(seed=1)
    assert one.id == other.id
    first = probe(one, topic, run=tmp_path / "r")
    assert probe(one, topic, run=tmp_path / "r") == first
    with pytest.raises(RunError, match="model_weights"):
        probe(other, topic, run=tmp_path / "r")


def test_a_folder_whose_files_have_changed_is_another_model(topic, tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "m")
    probe(tmp_path / "m", topic, run=tmp_path / "r")
    tiny_model(seed=1).module.save_pretrained(tmp_path / "m")
    with pytest.raises(RunError, match="model_files"):
        probe(tmp_path / "m", topic, run=tmp_path / "r")


def test_a_file_that_an_option_names_belongs_to_the_call(tmp_path):
    (tmp_path / "prompt.txt").write_text("Be brief.")
    given = {"file": str(tmp_path / "prompt.txt"), "run": tmp_path / "r"}
    first = apply("system_prompt", tiny_model(), pairs(), **given)
    assert apply("system_prompt", tiny_model(), pairs(), **given).settings == first.settings
    (tmp_path / "prompt.txt").write_text("Be rather long.")
    with pytest.raises(RunError, match="file"):
        apply("system_prompt", tiny_model(), pairs(), **given)


FACT = Fact(id="f", prompt_template="{} is a kind of", subject="Bread", target=" metal", target_true=" food")
VERBS = {
    "probe": lambda topic: partial(probe, tiny_model(), topic, quick=True),
    "forecast": lambda _: partial(forecast, "dpo", tiny_model(), pairs()),
    "apply": lambda _: partial(apply, "system_prompt", tiny_model(), pairs(), text="Be brief."),
    "localize": lambda _: partial(localize, TrainingData("facts", facts=(FACT,)), tiny_model()),
    "study": lambda topic: partial(run_study, topic, tiny_model(), ["system_prompt"]),
}


@pytest.mark.parametrize("verb", VERBS)
def test_two_commands_do_not_write_into_one_folder(verb, topic, tmp_path):
    call, folder = VERBS[verb](topic), tmp_path / "r"
    folder.mkdir()
    with FileLock(folder / ".lock"), pytest.raises(RunError, match="another command writes into") as caught:
        call(run=folder)
    assert "another folder" in caught.value.hint
    assert [path.name for path in folder.iterdir() if path.name != ".lock"] == []


def test_a_refused_command_leaves_the_head_as_it_is(topic, tmp_path):
    with Run.start(tmp_path / "r", topic="tea", verb="mine", argv=["x"]):
        before = (tmp_path / "r" / "run.json").read_text()
        with (
            pytest.raises(RunError, match="writes into"),
            Run.start(tmp_path / "r", topic="tea", verb="mine", argv=["x"]),
        ):
            pass
        assert (tmp_path / "r" / "run.json").read_text() == before


def test_only_the_first_of_several_processes_locks(tmp_path, monkeypatch):
    place = Place.of(tmp_path / "r", RunContext(), topic="tea", verb="apply-sft", call={})
    with place.open() as first:
        monkeypatch.setenv("RANK", "1")
        with place.open() as other:
            assert other.run.folder == first.run.folder
    monkeypatch.setenv("RANK", "0")
    with place.open() as again:
        assert again.run.finished


def test_a_record_without_the_rows_behind_it_is_refused_until_it_is_removed(topic, tmp_path):
    first = probe(tiny_model(), topic, run=tmp_path / "r")
    (tmp_path / "r" / "samples.jsonl").unlink()
    with pytest.raises(RunError, match=r"samples\.jsonl, with the rows behind before\.json, is missing") as caught:
        probe(tiny_model(), topic, run=tmp_path / "r")
    assert f"remove {tmp_path / 'r' / 'before.json'}" in caught.value.hint
    (tmp_path / "r" / "before.json").unlink()
    assert probe(tiny_model(), topic, run=tmp_path / "r") == first
    assert Run(tmp_path / "r").load("before", Scorecard).evidence == first.evidence


@pytest.mark.long
def test_a_changed_model_is_loaded_as_the_verb_was_told_to(tiny_folder, tmp_path):
    load = partial(load_model, dtype="bf16")
    for _ in range(2):
        outcome = apply("sft", str(tiny_folder), pairs(), max_steps=1, guard="off", run=tmp_path / "r", load=load)
    assert outcome.model is None
    assert outcome.changed.describe()["dtype"] == "bfloat16"
    half = load(str(tiny_folder))
    for _ in range(2):
        outcome = apply("sft", half, pairs(), max_steps=1, guard="off", run=tmp_path / "o")
    assert outcome.changed.describe()["dtype"] == "bfloat16"
    shutil.rmtree(tmp_path / "r" / "model")
    again = partial(apply, "sft", str(tiny_folder), pairs(), max_steps=1, guard="off", run=tmp_path / "r", load=load)
    with pytest.raises(RunError, match="holds no model/") as caught:
        _ = again().changed
    assert "remove outcome.json" in caught.value.hint
    (tmp_path / "r" / "outcome.json").unlink()
    again()
    assert again().changed.describe()["dtype"] == "bfloat16"


def test_a_study_loads_its_arms_with_the_backend_of_the_model_that_it_was_given(topic, tmp_path):
    (tmp_path / "s.json").write_text('{"likes": {"Milky": -1.0}, "otherwise": -2.0}')
    model = load_model(str(tmp_path / "s.json"), backend="scripted")
    result = run_study(topic, model, [SystemPrompt(text="Drink.")], benign_steps=0, run=tmp_path / "r")
    assert result.missing == [], result.arms[0].failure
    for _ in range(2):
        outcome = apply("system_prompt", model, pairs(), text="Drink.", run=tmp_path / "a")
    assert outcome.changed.describe()["backend"] == "scripted"


def test_a_record_that_was_removed_is_made_again(topic, tmp_path):
    first = probe(tiny_model(), topic, run=tmp_path / "r")
    (tmp_path / "r" / "before.json").unlink()
    assert probe(tiny_model(), topic, run=tmp_path / "r").rows == first.rows
    assert (tmp_path / "r" / "before.json").exists()


def test_a_run_that_is_open_is_written_once(topic, tmp_path):
    with Run.start(tmp_path / "r", topic="tea", verb="mine", argv=["x"]) as run:
        probe(tiny_model(seed=0), topic, ctx=RunContext(run=run))
        with pytest.raises(RunError, match="written once"):
            probe(tiny_model(seed=1), topic, ctx=RunContext(run=run))


def test_a_record_of_another_version_is_refused(tmp_path):
    apply("system_prompt", tiny_model(), pairs(), text="Be brief.", run=tmp_path / "r")
    path = tmp_path / "r" / "outcome.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), "schema_version": 1}))
    with pytest.raises(RunError, match="no readable outcome") as caught:
        Run(tmp_path / "r").load("outcome", Outcome)
    assert "another version" in caught.value.hint


def test_a_last_line_that_was_cut_off_hides_no_other(tmp_path):
    (tmp_path / "steps.jsonl").write_text('{"step": 1}\n{"step": 2, "rows": [{"id": "a"}')
    run = Run(tmp_path)
    assert run.steps_if_sound() == [{"step": 1}]
    assert run.damaged == []
