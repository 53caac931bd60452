"""Run folders: whole files, written once, taken up again after an interruption."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tea import tea_items

from conviction import Run, ScriptedModel, load_topic, probe
from conviction.core.storage import write_atomic
from conviction.errors import RunError, StorageError
from conviction.probing.records import Scorecard


def start(folder: Path, **changes):
    return Run.start(folder, **{"topic": "tea", "verb": "probe", "argv": ["x"], **changes})


def status(folder: Path) -> str:
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))["status"]


@pytest.fixture
def card(write_topic):
    return probe(ScriptedModel(likes=lambda _, a: -1.0 - len(a) / 50), load_topic(write_topic(items=tea_items(3))))


def test_a_scorecard_survives_the_round_trip(tmp_path, card):
    with start(tmp_path / "r") as run:
        assert status(run.folder) == "running"
        run.save("before", card)
    assert status(tmp_path / "r") == "done"
    assert run.load("before", Scorecard) == card


@given(text=st.text(max_size=40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
def test_any_text_survives_in_the_evidence(tmp_path_factory, card, text):
    sample = card.evidence[0].model_copy(update={"text": text})
    changed = card.model_copy(update={"evidence": (sample, *card.evidence[1:])})
    with start(tmp_path_factory.mktemp("r")) as run:
        run.save("before", changed)
        assert run.load("before", Scorecard).evidence[0].text == text


def test_stages_are_written_once(tmp_path, card):
    with start(tmp_path / "r") as run:
        run.save("before", card)
        with pytest.raises(RunError, match="written once"):
            run.save("before", card)
        run.save("after", card)
        assert run.load("before", Scorecard).evidence == run.load("after", Scorecard).evidence == card.evidence


@pytest.mark.parametrize(("error", "expected"), [(KeyboardInterrupt, "interrupted"), (ValueError, "failed")])
def test_an_unfinished_run_says_so_and_is_taken_up_again(tmp_path, card, error, expected):
    with pytest.raises(error), start(tmp_path / "r"):
        raise error
    assert status(tmp_path / "r") == expected
    with start(tmp_path / "r") as run:
        assert run.resumed
        run.save("before", card)
    assert status(tmp_path / "r") == "done"


def test_a_finished_run_gives_its_results_again(tmp_path, card):
    with start(tmp_path / "r") as run:
        run.save("before", card)
    written = (tmp_path / "r" / "run.json").read_text(encoding="utf-8")
    with start(tmp_path / "r") as run:
        assert run.finished
        assert run.load("before", Scorecard) == card
    assert (tmp_path / "r" / "run.json").read_text(encoding="utf-8") == written


def test_an_old_folder_is_refused_with_what_to_do(tmp_path):
    with start(tmp_path / "r"):
        pass
    head = json.loads((tmp_path / "r" / "run.json").read_text(encoding="utf-8"))
    (tmp_path / "r" / "run.json").write_text(json.dumps({**head, "schema_version": 1}))
    with pytest.raises(RunError, match="schema version 1, this program reads 2") as caught, start(tmp_path / "r"):
        pass
    assert "make the run again in a new folder" in caught.value.hint


def test_a_foreign_folder_is_refused(tmp_path):
    with start(tmp_path / "r"):
        pass
    with pytest.raises(RunError, match="begun with other arguments"), start(tmp_path / "r", argv=["x", "--other"]):
        pass
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("do not touch")
    with pytest.raises(RunError, match=r"no readable run\.json"), start(tmp_path / "other"):
        pass
    with pytest.raises(KeyboardInterrupt), start(tmp_path / "half"):
        raise KeyboardInterrupt
    with pytest.raises(RunError, match="unfinished probe of 'tea'"), start(tmp_path / "half", topic="coffee"):
        pass


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    write_atomic(tmp_path / "f.json", "first")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="No space left") as caught:
        write_atomic(tmp_path / "f.json", "second")
    assert "free some space" in caught.value.hint
    assert [p.name for p in tmp_path.iterdir()] == ["f.json"]
    assert (tmp_path / "f.json").read_text(encoding="utf-8") == "first"


def test_a_run_that_stopped_after_saving_can_still_be_finished(tmp_path, card):
    def interrupted() -> None:
        with start(tmp_path / "r") as run:
            run.save("before", card)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with pytest.raises(RunError, match="other arguments"), start(tmp_path / "r", argv=["x", "--model", "other"]):
        pass
    with start(tmp_path / "r") as run:
        run.save("before", card)
    assert run.load("before", Scorecard) == card


@pytest.mark.parametrize("damage", ['{"half', "7", '{"no": "stage"}'])
def test_damaged_rows_are_named_when_read_and_when_added_to(tmp_path, card, damage):
    with start(tmp_path / "r") as run:
        run.save("before", card)
        (tmp_path / "r" / "samples.jsonl").write_text(damage + "\n")
        with pytest.raises(RunError, match=r"samples\.jsonl is damaged"):
            run.load("before", Scorecard)
        with pytest.raises(RunError, match=r"samples\.jsonl is damaged"):
            run.save("after", card)
