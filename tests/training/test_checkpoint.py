"""Checkpoints: whole or not at all, checked when read, two kept, and a disk that is full."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from conviction.errors import StorageError
from conviction.training.checkpoint import load_latest, save_checkpoint

STATE = {"tokens": 12, "monitor": {"history": [{"loss": 0.5, "sample": None}]}, "text": "β ≤ 1"}


def tensors_of(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        "weights/a": torch.randn(5, 3, generator=generator),
        "weights/half": torch.randn(4, generator=generator).to(torch.bfloat16),
        "optimizer/state.a.step": torch.tensor(float(step)),
        "rng": torch.get_rng_state(),
    }


def save(folder: Path, *steps: int) -> None:
    for step in steps:
        save_checkpoint(folder, step, tensors_of(step), {**STATE, "tokens": step})


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def silent(text: str) -> None:
    pytest.fail(f"said: {text}")


def assert_is(result, step: int) -> None:
    assert result is not None
    assert result[0] == step
    assert result[2] == {**STATE, "tokens": step}
    wanted = tensors_of(step)
    assert result[1].keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert result[1][name].dtype == tensor.dtype
        assert torch.equal(result[1][name], tensor), name


def test_what_is_written_is_read(tmp_path):
    save(tmp_path / "new" / "folder", 25)
    assert_is(load_latest(tmp_path / "new" / "folder", silent), 25)


@pytest.mark.parametrize("kind", ["transposed", "slice", "grad"])
def test_any_tensor_can_be_written(tmp_path, kind):
    base = torch.arange(12.0).view(3, 4)
    given = {"transposed": base.T, "slice": base[:, 1:3], "grad": torch.nn.Parameter(base)}[kind]
    save_checkpoint(tmp_path, 1, {"x": given}, {})
    result = load_latest(tmp_path, silent)
    assert result is not None
    assert torch.equal(result[1]["x"], given.detach())


def test_the_newest_is_read_and_two_are_kept(tmp_path):
    save(tmp_path, 25, 50, 75, 100)
    assert names(tmp_path) == ["step-000075", "step-000100"]
    assert_is(load_latest(tmp_path, silent), 100)


def test_newest_is_by_number_also_beyond_six_digits(tmp_path):
    save(tmp_path, 999_999, 1_000_000)
    assert_is(load_latest(tmp_path, silent), 1_000_000)


def test_a_step_can_be_written_again(tmp_path):
    save_checkpoint(tmp_path, 50, {"x": torch.zeros(2)}, {"old": True})
    save(tmp_path, 50)
    assert names(tmp_path) == ["step-000050"]
    assert_is(load_latest(tmp_path, silent), 50)


def test_no_folder_and_an_empty_one_hold_none(tmp_path):
    assert load_latest(tmp_path / "nothing", silent) is None
    assert load_latest(tmp_path, silent) is None


def test_what_is_no_checkpoint_is_left_alone(tmp_path):
    (tmp_path / "step-notes").mkdir()
    (tmp_path / ".step-abc").mkdir()  # a process was killed while it wrote
    save(tmp_path, 25, 50, 75)
    assert_is(load_latest(tmp_path, silent), 75)
    assert "step-notes" in names(tmp_path)


def test_there_is_no_pickle(tmp_path):
    save(tmp_path, 25)
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert sorted(p.name for p in files) == ["state.json", "tensors.safetensors"]
    assert all(p.read_bytes()[:2] not in {b"\x80\x02", b"\x80\x04", b"PK"} for p in files)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 0xFF  # within the tensors: the header stays readable
    path.write_bytes(bytes(data))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = {
    "a bit is flipped": lambda p: flip(p / "tensors.safetensors"),
    "weights are truncated": lambda p: truncate(p / "tensors.safetensors"),
    "weights are gone": lambda p: (p / "tensors.safetensors").unlink(),
    "json is truncated": lambda p: truncate(p / "state.json"),
    "json is empty": lambda p: (p / "state.json").write_text(""),
    "json is gone": lambda p: (p / "state.json").unlink(),
    "json holds no hash": lambda p: (p / "state.json").write_text('{"step": 50}'),
    "json is a list": lambda p: (p / "state.json").write_text("[]"),
    "json is not utf-8": lambda p: (p / "state.json").write_bytes(b"\xff\xfe{}"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_newest_gives_way_to_the_one_before_and_says_so(tmp_path, damage):
    save(tmp_path, 25, 50)
    DAMAGE[damage](tmp_path / "step-000050")
    logged: list[str] = []
    assert_is(load_latest(tmp_path, logged.append), 25)
    assert len(logged) == 1
    assert str(tmp_path / "step-000050") in logged[0]
    assert "trying the one before" in logged[0]
    save(tmp_path, 50)  # the resumed run comes there again
    assert_is(load_latest(tmp_path, silent), 50)


def test_when_all_are_damaged_there_is_none(tmp_path):
    save(tmp_path, 25, 50)
    for place in tmp_path.iterdir():
        truncate(place / "tensors.safetensors")
    logged: list[str] = []
    assert load_latest(tmp_path, logged.append) is None
    assert len(logged) == 2


def test_weights_of_another_step_are_noticed(tmp_path):
    save(tmp_path, 25, 50)
    (tmp_path / "step-000025" / "tensors.safetensors").replace(tmp_path / "step-000050" / "tensors.safetensors")
    logged: list[str] = []
    assert load_latest(tmp_path, logged.append) is None
    assert "not those that were written" in logged[0]


# -- a disk that refuses --------------------------------------------------------------

FULL_DISK = """
    import json, resource, signal, sys
    from pathlib import Path

    import torch

    from conviction.errors import StorageError
    from conviction.training.checkpoint import load_latest, save_checkpoint

    folder, limit, tensor, text = Path(sys.argv[1]), *map(int, sys.argv[2:])
    save_checkpoint(folder, 25, {"x": torch.arange(8.0)}, {"tokens": 25})
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        save_checkpoint(folder, 50, {"x": torch.zeros(tensor)}, {"text": "x" * text})
    except StorageError as error:
        report = {"message": error.message, "hint": error.hint}
    else:
        report = {"message": "nothing was raised", "hint": ""}
    logged = []
    latest = load_latest(folder, logged.append)
    report |= {"step": latest[0], "x": latest[1]["x"].tolist(), "logged": logged}
    report["left"] = [p.name for p in folder.iterdir()]
    print(json.dumps(report))
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits there")
@pytest.mark.parametrize(("tensor", "text"), [(100_000, 1), (1, 100_000)], ids=["weights", "state"])
def test_a_full_disk_is_an_error_that_costs_nothing_already_written(tmp_path, tensor, text):
    """A file may grow to 20 kB only: the write fails midway, as on a disk without room."""
    script = tmp_path / "full.py"
    script.write_text(textwrap.dedent(FULL_DISK), encoding="utf-8")
    folder = tmp_path / "checkpoints"
    arguments = [sys.executable, str(script), str(folder), "20000", str(tensor), str(text)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["message"].startswith(f"writing the checkpoint of step 50 to {folder}: ")
    assert "File too large" in report["message"]
    assert "free some space" in report["hint"]
    assert (report["step"], report["x"]) == (25, list(range(8)))
    assert report["logged"] == []
    assert report["left"] == ["step-000025"], "nothing half-written stays"


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="writing the checkpoint of step 1") as caught:
        save_checkpoint(tmp_path / "file" / "checkpoints", 1, {"x": torch.zeros(1)}, {})
    assert caught.value.hint


def test_state_that_cannot_be_written_leaves_earlier_checkpoints_alone(tmp_path):
    save(tmp_path, 25)
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_checkpoint(tmp_path, 25, tensors_of(25), {"tensor": torch.zeros(1)})
    assert names(tmp_path) == ["step-000025"]
    assert_is(load_latest(tmp_path, silent), 25)
