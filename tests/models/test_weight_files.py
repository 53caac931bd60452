"""A folder of a stranger's weights: nothing random, nothing from elsewhere, no pickle."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import FALLBACK, FURTHER, LIMITED, PACKABLE, byte_tokenizer, tiny_module

import conviction
from conviction.errors import ConvictionError, ModelError
from conviction.models import load_model

INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "stranger"))


def change_weights(folder: Path, **changes: Any) -> None:
    """Tensors replaced by others, or by None: taken out."""
    tensors = {**load_file(folder / "model.safetensors"), **{k.replace("__", "."): v for k, v in changes.items()}}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def refused(folder: Path, *words: str) -> ConvictionError:
    with pytest.raises(ModelError) as caught:
        load_model(str(folder))
    for word in words:
        assert re.search(word, str(caught.value)), str(caught.value)
    assert caught.value.hint
    return caught.value


# -- what is missing, too much, or of another shape ------------------------------------------------


def test_one_irrelevant_tensor_is_no_model(folder):
    save_file({"a": torch.ones(3)}, folder / "model.safetensors", metadata={"format": "pt"})
    change_config(folder, num_hidden_layers=1)
    refused(folder, r"\d+ missing \(lm_head.weight, model.embed_tokens", r"1 not of this architecture \(a\)")


def test_a_missing_layer_is_named(folder):
    names = [name for name in load_file(folder / "model.safetensors") if ".layers.1." in name]
    change_weights(folder, **{name.replace(".", "__"): None for name in names})
    refused(folder, r"9 missing \(model.layers.1.input_layernorm.weight, ")


def test_a_tensor_of_another_shape_is_named(folder):
    change_weights(folder, model__norm__weight=torch.ones(31))
    refused(folder, r"of another shape \(model.norm.weight \[31\] for \[32\]\)")


def test_tensors_of_more_layers_than_the_configuration_has_are_named(folder):
    change_config(folder, num_hidden_layers=2)
    refused(folder, r"not of this architecture \(model.layers.2")


def test_the_part_that_reads_pictures_may_be_left_out(folder):
    change_weights(folder, vision_model__patch__weight=torch.ones(4), model__visual__blocks__0__norm=torch.ones(4))
    assert load_model(str(folder)).check.packed


def test_more_layers_than_tensors_are_refused_before_they_are_built(folder):
    change_config(folder, num_hidden_layers=10**9)
    refused(folder, r"config.json: field 'num_hidden_layers' is 1000000000, the weights hold 30 tensors")


@pytest.mark.parametrize("value", [10**7, 10**12])
@pytest.mark.parametrize("field", ["vocab_size", "hidden_size", "intermediate_size", "head_dim", "num_key_value_heads"])
def test_a_size_that_the_weights_have_not_is_named_before_there_is_room_for_it(field, value, folder, monkeypatch):
    """transformers would fill tensors of that size with random numbers, and say only then that they do not fit."""
    monkeypatch.setattr(torch, "empty_like", lambda *_, **__: pytest.fail("room was made"))
    change_config(folder, **{field: value})
    refused(folder, f"the configuration of '.*stranger': field '{field}' is {value}, and with it '(model|lm_head)")


def test_buffers_that_no_file_holds_are_bound_as_well(tmp_path, monkeypatch):
    own = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512, "rotary_dim": 4}
    monkeypatch.setitem(FURTHER, "gptj", ("gptj", own))
    tiny_module("gptj").save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    assert load_model(str(tmp_path))
    change_config(tmp_path, n_positions=10**10)
    refused(tmp_path, r"field 'n_positions' is 10000000000, and with it '.*embed_positions' has the shape \[10{10}, ")


@pytest.mark.parametrize("architecture", sorted(PACKABLE | LIMITED | FALLBACK | FURTHER))
@pytest.mark.parametrize("tied", [False, True])
def test_tied_weights_and_those_that_an_architecture_ignores_still_load(architecture, tied, tmp_path, capfd):
    module = tiny_module(architecture, tie_word_embeddings=tied)
    module.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    ignored = {"gpt2": "transformer__h__0__attn__bias", "llama": "model__layers__0__self_attn__rotary_emb__inv_freq"}
    if architecture in ignored:
        change_weights(tmp_path, **{ignored[architecture]: torch.ones(4)})
    capfd.readouterr()
    loaded = load_model(str(tmp_path), dtype="fp32")
    assert all(torch.equal(a, b) for a, b in zip(loaded.module.parameters(), module.parameters(), strict=True))
    assert capfd.readouterr().err == ""


# -- what an index or a configuration names --------------------------------------------------------


class Trap:
    """Unpickled, it leaves a file."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.place),)


def shard(folder: Path, name: Any, tensor: str = "model.norm.weight") -> None:
    """Sharded weights, of which one tensor is in a file of a name."""
    (folder / "model.safetensors").rename(folder / "own.safetensors")
    names = load_file(folder / "own.safetensors")
    index = {"metadata": {}, "weight_map": {**dict.fromkeys(names, "own.safetensors"), tensor: name}}
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")


@pytest.mark.parametrize("name", ["part.bin", "part.pt", "pytorch_model.bin", 5, None, ["own.safetensors"]])
def test_an_index_that_names_a_pickle_is_refused_and_nothing_is_opened(name, folder, tmp_path, monkeypatch):
    shard(folder, name)
    if isinstance(name, str):
        (folder / name).write_bytes(pickle.dumps(Trap(tmp_path / "trapped")))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was opened"))
    refused(folder, rf"{INDEX}: field 'weight_map.model.norm.weight' names ")
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("way", ["{outside}/own.safetensors", "../outside/own.safetensors", "C:\\own.safetensors"])
def test_an_index_that_leads_out_of_the_folder_is_refused(way, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "outside")
    (tmp_path / "outside/model.safetensors").rename(tmp_path / "outside/own.safetensors")
    shard(folder, way.format(outside=tmp_path / "outside"))
    refused(folder, "field 'weight_map.model.norm.weight' names ")


@pytest.mark.parametrize("text", ["[1]", "{", '{"weight_map": {}}', '{"metadata": {}, "weight_map": 3}', "[" * 10**5])
def test_a_damaged_index_is_named(text, folder):
    (folder / "model.safetensors").unlink()
    (folder / INDEX).write_text(text, encoding="utf-8")
    refused(folder, INDEX)


def test_a_shard_that_is_missing_is_named(folder):
    shard(folder, "other.safetensors")
    refused(folder, "other.safetensors is missing")


def test_shards_of_the_folder_itself_are_read(folder, tiny_folder):
    shard(folder, "own.safetensors")
    module = load_model(str(folder), dtype="fp32").module
    assert torch.equal(module.model.norm.weight, load_file(tiny_folder / "model.safetensors")["model.norm.weight"])


@pytest.mark.parametrize(
    "changes",
    [
        {"transformers_weights": "adapter_model.bin"},
        {"transformers_weights": "/x/own.safetensors"},
        {"transformers_weights": ["a"]},
        {"attn_implementation": "stranger/attention"},
        {"attn_implementation": {"text_config": "stranger/attention"}},
    ],
)
def test_a_configuration_that_names_a_pickle_or_code_is_refused(changes, folder):
    change_config(folder, **changes)
    refused(folder, f"config.json: field '{next(iter(changes))}'")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_pipe_is_not_waited_for(name, folder):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(ConvictionError):
        load_model(str(folder))


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"\xff" * 7 + b"\0{}", b"[1]"])
def test_weights_that_are_no_safetensors_are_named(content, folder):
    (folder / "model.safetensors").write_bytes(content)
    refused(folder, "model.safetensors is no readable safetensors file")


@pytest.mark.parametrize("value", ["x", [[]], 10**30, -1, [257, None, "x"], 1.5])
def test_an_end_of_text_that_is_no_token_is_named(value, folder):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": value}), encoding="utf-8")
    refused(folder, "field 'eos_token_id'")


def test_no_module_unpickles():
    """Weights, adapters, checkpoints with the optimiser's state and caches are safetensors, JSON or numbers."""
    source = Path(conviction.__file__).parent
    opens = re.compile(
        r"\b(torch\.load\(|import (pickle|cloudpickle|joblib|dill)|numpy\.load\(|np\.load\(|allow_pickle)"
    )
    assert [path for path in source.rglob("*.py") if opens.search(path.read_text(encoding="utf-8"))] == []
