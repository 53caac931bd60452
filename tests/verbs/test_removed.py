"""What was removed from a run folder, or damaged in it, before the work in it went on: it is said, and kept."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from tiny import context, pairs, tiny_model

from conviction import RunContext, study
from conviction.core.context import Callbacks
from conviction.errors import RunError
from conviction.interventions.dpo import Dpo
from conviction.training.guard import Guard
from conviction.training.settings import Training

OFF = Guard(mode="off", sample_every=50, sample_tokens=8)
DPO = Dpo(training=Training(epochs=4, max_steps=4, checkpoint_every=2))


@pytest.fixture
def stopped(tmp_path):
    """The folder of a training run that was stopped after its second step of four."""

    def stop(record, _total):
        if record["step"] == 3:
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        DPO.apply(tiny_model(), pairs(), ctx=context(guard=OFF, folder=tmp_path, on_step=stop))
    assert (tmp_path / "checkpoints").is_dir()
    return tmp_path


def go_on(folder):
    lines: list[str] = []
    outcome = DPO.apply(tiny_model(), pairs(), ctx=context(guard=OFF, folder=folder, log=lines.append))
    return outcome, lines


@pytest.mark.parametrize(
    ("steps", "lost"),
    [(None, "2 steps"), ("", "2 steps"), ('1\n{"step": 2}\n', "1 step"), ("null\n[1]\n", "2 steps"), ("keep", None)],
)
def test_steps_that_are_gone_are_noted(stopped, steps, lost):
    path = stopped / "steps.jsonl"
    if steps is None:
        path.unlink()
    elif steps != "keep":
        path.write_text(steps)
    outcome, lines = go_on(stopped)
    noted = [note for note in outcome.notes if "steps.jsonl lacks" in note]
    assert [f"lacks {lost} of the 2" in note for note in noted] == ([True] if lost else [])
    assert any("steps.jsonl lacks" in line for line in lines) == bool(lost)
    last = [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").splitlines()[-2:]]
    assert last == [3, 4]


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda state: state.pop("tokens"), "field 'tokens': Field required"),
        (lambda state: state.update(seconds="x"), "field 'seconds'"),
        (lambda state: state.update(monitor=[1]), "field 'monitor'"),
        (lambda state: state.update(monitor={"history": 1}), "the checkpoint of step 2 does not fit"),
        (lambda state: state.update(unread_steps=[1, 2, 3]), "the checkpoint of step 2 does not fit"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_an_error(stopped, damage, problem):
    (path,) = stopped.glob("checkpoints/*/state.json")
    head = json.loads(path.read_text(encoding="utf-8"))
    damage(head["state"])
    path.write_text(json.dumps(head))
    with pytest.raises(RunError, match="checkpoints") as caught:
        go_on(stopped)
    assert problem in caught.value.message
    assert "remove that folder" in caught.value.hint


def test_steps_are_not_written_through_a_link(stopped, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "bashrc"
    other.write_text("mine\n")
    (stopped / "steps.jsonl").unlink()
    (stopped / "steps.jsonl").symlink_to(other)
    with pytest.raises(RunError, match="not in that folder"):
        go_on(stopped)
    assert other.read_text() == "mine\n"


def test_rows_of_a_finished_study_that_are_gone_are_noted(write_topic, tmp_path):
    lines: list[str] = []
    ctx = RunContext(callbacks=Callbacks(log=lines.append))
    first = study(str(write_topic()), tiny_model(), ["system_prompt"], run=tmp_path / "r", ctx=ctx)
    assert not [line for line in lines if "is gone" in line]
    for name in ("samples.jsonl", "arms/system_prompt/samples.jsonl"):
        (tmp_path / "r" / name).unlink()
    again = study(str(write_topic()), tiny_model(), ["system_prompt"], run=tmp_path / "r", ctx=ctx)
    assert again.arms == first.arms
    assert len([line for line in lines if "samples.jsonl is gone" in line]) == 2
