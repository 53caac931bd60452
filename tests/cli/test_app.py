"""The command line, as a user meets it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
from commands import failed


@pytest.mark.long
def test_probe_prints_the_table_and_keeps_the_evidence(run, write_topic, tiny_folder, tmp_path):
    code, out, err = run(
        "probe", str(write_topic()), "--model", str(tiny_folder), "--run", "r", "--templates", "--health"
    )
    assert code == 0
    for part in ("Question 0 in wording 0?", "plain", "milky", "winner", "mean gap", "Controls", "Templates", "Health"):
        assert part in out
    assert "samples.jsonl" in err
    assert json.loads((tmp_path / "r" / "run.json").read_text(encoding="utf-8"))["status"] == "done"
    card = json.loads((tmp_path / "r" / "before.json").read_text(encoding="utf-8"))
    samples = [json.loads(line) for line in (tmp_path / "r" / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {name for row in card["rows"] for name in row["samples"].values()} <= {s["id"] for s in samples}


def test_json_is_one_object_on_stdout(run, write_topic, tiny_folder):
    code, out, _ = run("probe", str(write_topic()), "--model", str(tiny_folder), "--format", "json")
    data = json.loads(out)
    assert code == 0
    assert data["topic"] == "tea"
    assert data["provenance"]["model"]["self_check"]["packed"] is True


def test_markdown_is_a_table(run, write_topic, tiny_folder):
    _, out, _ = run("probe", str(write_topic()), "--model", str(tiny_folder), "--format", "md", "--quick")
    assert "| question | plain | milky | gap | winner |" in out
    assert out.count("\n| Question") == 2


def test_markup_in_a_topic_stays_text(run, write_topic, tiny_folder):
    from tea import tea_items

    items = tea_items(2)
    items[0]["question"] = "[red]Is | this[/red] markup?"
    folder = str(write_topic(items=items))
    assert "[red]Is | this[/red] markup?" in run("probe", folder, "--model", str(tiny_folder))[1]
    assert r"\[red\]Is \| this\[/red\]" in run("probe", folder, "--model", str(tiny_folder), "--format", "md")[1]


def test_ctrl_c_keeps_what_was_scored(run, write_topic, tiny_folder, tmp_path, monkeypatch):
    from conviction.models.hf import HFModel
    from conviction.models.score_cache import ScoreCache

    monkeypatch.setattr("conviction.models.engine.torch_engine.TOKEN_BUDGET", {"cpu": 64})
    kept, original = [], ScoreCache.keep

    def interrupted(self, scores):
        original(self, scores)
        kept.extend(scores)
        if len(kept) > 20:
            raise KeyboardInterrupt

    arguments = ("probe", str(write_topic()), "--model", str(tiny_folder), "--run", "r", "--dtype", "fp32")
    monkeypatch.setattr(ScoreCache, "keep", interrupted)
    assert "interrupted" in failed(run(*arguments))
    assert sorted(p.name for p in (tmp_path / "r").iterdir()) == [".lock", "run.json"]
    assert json.loads((tmp_path / "r" / "run.json").read_text(encoding="utf-8"))["status"] == "interrupted"

    monkeypatch.setattr(ScoreCache, "keep", original)
    asked, packed = [], HFModel._packed

    def counted(self, rows, *more):
        asked.extend(rows)
        return packed(self, rows, *more)

    monkeypatch.setattr(HFModel, "_packed", counted)
    code, _, err = run(*arguments)
    assert code == 0
    assert "resuming the unfinished run" in err
    assert not set(kept) & set(asked[5:])  # the first five are the self-check's own


AGAIN = {
    "probe": ("probe", "tea", "--quick"),
    "forecast": ("forecast", "dpo", "tea", "--pilot", "2", "--guard", "off", "-o", "max_steps=2"),
    "apply": ("apply", "dpo", "tea", "--guard", "off", "-o", "max_steps=2"),
    "study": ("study", "tea", "--interventions", "system_prompt", "--benign-steps", "0"),
    "compare": ("compare", "a", "b", "--topic", "tea", "--benign-steps", "0"),
    "localize": ("localize", "--data", "facts.jsonl", "--own-answer", "--limit", "1", "--samples", "2"),
}


@pytest.mark.long
@pytest.mark.parametrize("command", AGAIN)
def test_a_finished_command_given_again_prints_its_result(
    run, write_topic, tiny_folder, tmp_path, monkeypatch, command
):
    """In any format, with no model loaded and nothing written."""
    write_topic()
    (tmp_path / "facts.jsonl").write_text(
        json.dumps({"prompt": "Bread is a kind of", "subject": "Bread", "target": " metal", "target_true": " food"})
    )
    on = ("--model", str(tiny_folder), "--dtype", "fp32")
    if command == "compare":
        for name in ("a", "b"):
            assert run("apply", "system_prompt", "tea", *on, "-o", f"text={name}", "--run", name)[0] == 0
    code, first, err = run(*AGAIN[command], *on, "--run", "r", "--format", "json")
    assert code in {0, 1}, err
    written = {p: p.stat().st_mtime_ns for p in (tmp_path / "r").rglob("*") if p.name != "report.html"}
    monkeypatch.setattr("conviction.models.load_model", lambda *_, **__: pytest.fail("a model is loaded"))
    assert run(*AGAIN[command], *on, "--run", "r", "--format", "json")[:2] == (code, first)
    assert run(*AGAIN[command], *on, "--run", "r")[0] == code
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "r").rglob("*") if p.name != "report.html"} == written
    if command == "compare":
        assert [arm["name"] for arm in json.loads(first)["arms"]] == ["a", "b"]


def test_errors_are_two_lines_and_exit_code_2(run, write_topic, tiny_folder, tmp_path):
    tea = str(write_topic())
    assert "did you mean 'obesity'?" in failed(run("probe", "obesty"))
    assert "did you mean 'smollm2-135m'?" in failed(run("probe", tea, "--model", "smollm2-135"))
    assert "there is no folder" in failed(run("probe", tea, "--model", "./nowhere"))
    assert "config.json" in failed(run("probe", tea, "--model", str(tmp_path)))
    assert "there is no file" in failed(run("probe", tea, "--model", "x.gguf"))
    assert "probe" in failed(run("prob", tea))
    assert "--format" in failed(run("probe", tea, "--format", "xml"))
    assert "device 'cudda'" in failed(run("probe", tea, "--model", str(tiny_folder), "--device", "cudda"))
    assert "unknown dtype 'fp61'" in failed(run("probe", tea, "--model", str(tiny_folder), "--dtype", "fp61"))
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_folder, damaged)
    (damaged / "model.safetensors").write_bytes(b"x" * 40)
    assert "no readable" in failed(run("probe", tea, "--model", str(damaged)))
    assert "use one of: auto, fp32" in failed(run("probe", tea, "--dtype", "fp61"))
    assert not (tmp_path / "runs").exists()
    (tmp_path / "file").write_text("")
    assert "writing" in failed(run("probe", tea, "--model", str(tiny_folder), "--run", "file/r"))


def test_a_broken_cache_folder_is_named(run, write_topic, tiny_folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CONVICTION_CACHE", str(tmp_path / "file" / "cache"))
    err = failed(run("probe", str(write_topic()), "--model", str(tiny_folder)))
    assert "score cache" in err
    assert "CONVICTION_CACHE" in err


def test_a_damaged_cache_is_named(run, write_topic, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("CONVICTION_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "scores.sqlite").write_text("this is no database " * 100)
    assert "score cache" in failed(run("probe", str(write_topic()), "--model", str(tiny_folder)))


def test_pickled_weights_are_never_opened(run, write_topic, tmp_path, tiny_folder):
    import torch

    folder = tmp_path / "pickled"
    shutil.copytree(tiny_folder, folder)
    (folder / "model.safetensors").unlink()
    torch.save({"evil": 1}, folder / "pytorch_model.bin")
    assert "safetensors" in failed(run("probe", str(write_topic()), "--model", str(folder)))


@pytest.mark.long
def test_an_unreachable_hub_says_what_to_do(write_topic, tmp_path):
    """The hub's client tries five times, here without its pauses."""
    program = "import time; from conviction.cli.app import main; time.sleep = lambda _: None; main()"
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program, "probe", str(write_topic()), "--model", "someone/some-model"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=120,
    )
    err = failed((done.returncode, done.stdout, done.stderr))
    assert "someone/some-model" in err
    assert "offline" in err


def test_topics_and_models_are_listed(run):
    _, out, _ = run("topics", "--format", "json")
    assert {t["name"] for t in json.loads(out)} == {"obesity", "politeness", "brevity"}
    _, out, err = run("models")
    assert "smollm2-135m" in out
    assert "not yet" in out
    assert "cache:" in err


def test_topics_new_writes_a_topic_that_can_be_probed(run, tiny_folder):
    code, _, err = run("topics", "new", "tea")
    assert code == 0
    assert "conviction probe tea" in err
    assert run("probe", "tea", "--model", str(tiny_folder))[0] == 0
    assert "exists already" in failed(run("topics", "new", "tea"))


def test_version(run):
    assert run("--version")[1].startswith("conviction 0.")


def test_help_and_import_bring_no_torch():
    code = (
        "import sys, conviction, conviction.cli.app; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
