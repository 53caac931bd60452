"""What is read back from a folder belongs to the call: to its weights, its data and the files that it names."""

from __future__ import annotations

import json
import shutil

import pytest
from tiny import pairs, tiny_model

from conviction import Run, RunContext, apply, probe
from conviction.errors import RunError
from conviction.interventions.records import Outcome


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
