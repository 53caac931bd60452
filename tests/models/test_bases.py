"""Names that a folder holds: a base is loaded if it is here, and fetched only if the user names it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from typing import Any

import pytest
from commands import failed
from strangers import adapter, saved

from conviction import Query, chat
from conviction.errors import InputError, ModelError, ModelNotFoundError
from conviction.models import load_model

QUERY = Query(chat("Which tea?"), ("A green one.", "None."))


@pytest.fixture
def no_network(monkeypatch):
    """Nothing can be reached; returns what was tried."""
    tried: list[Any] = []

    def refuse(*arguments: Any, **_: Any) -> None:
        tried.append(arguments)
        raise OSError("no network")

    def run(command: Any, *arguments: Any, **options: Any) -> Any:
        return refuse(command) if "pip" in command else call(command, *arguments, **options)

    call = subprocess.run

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(subprocess, "run", run)
    return tried


@pytest.fixture
def hub(tiny_folder, tmp_path, monkeypatch):
    """A hub's cache that holds stranger/here, a copy of the tiny model."""
    place = tmp_path / "hub" / "models--stranger--here"
    shutil.copytree(tiny_folder, place / "snapshots" / ("a" * 40))
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return place


NAMES = [
    "stranger/model",
    "smollm2-135m",
    "gemma3-270m",
    "/gone/away",
    "..",
    "//host/share",
    "\\\\host\\share",
    "\x1b[31mred",
]


@pytest.mark.parametrize("kind", ["adapter", "saved"])
@pytest.mark.parametrize("name", NAMES)
def test_a_base_that_only_a_folder_names_is_shown_and_not_fetched(kind, name, tmp_path, no_network):
    folder = adapter(tmp_path / "a", name) if kind == "adapter" else saved(tmp_path / "a", "prompt", name, system="x")
    with pytest.raises(ModelNotFoundError) as caught:
        load_model(str(folder))
    shown = name.replace("\x1b", r"\x1b")
    assert shown in str(caught.value)
    assert no_network == []
    if name != "..":
        assert f"names the model '{shown}', which is not on this machine" in str(caught.value)
        assert f"--base {shown} " in caught.value.hint


@pytest.mark.parametrize("kind", ["adapter", "saved"])
@pytest.mark.parametrize("name", ["//host/share", "\\\\host\\share"])
def test_a_share_that_only_a_folder_names_is_not_looked_into(kind, name, tmp_path, monkeypatch):
    """Windows would log in there, with the user's name."""
    looked: list[str] = []
    isfile = os.path.isfile
    monkeypatch.setattr(os.path, "isfile", lambda path: bool(looked.append(str(path))) or isfile(path))
    folder = adapter(tmp_path / "a", name) if kind == "adapter" else saved(tmp_path / "a", "prompt", name, system="x")
    with pytest.raises(ModelNotFoundError):
        load_model(str(folder))
    assert looked
    assert [path for path in looked if path.startswith(("//", "\\\\"))] == []


def test_a_base_in_the_hubs_cache_is_loaded_without_asking_the_hub(hub, tmp_path, no_network, tiny_folder):
    model = load_model(str(adapter(tmp_path / "a", "stranger/here")), dtype="fp32")
    assert model.logprobs([QUERY]) == load_model(str(adapter(tmp_path / "b", str(tiny_folder)))).logprobs([QUERY])
    assert no_network == []


def test_a_model_of_the_hub_that_is_cached_is_loaded_where_there_is_no_network(hub, no_network, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert load_model("stranger/here", dtype="fp32").id == "stranger/here"
    assert no_network == []


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        (
            "adapter_config.json",
            '{"base_model_name_or_path": "other/model"}',
            "'stranger/here' on the hub is an adapter",
        ),
        (
            "model.safetensors.index.json",
            '{"metadata": {}, "weight_map": {"a": "b.bin"}}',
            "'weight_map.a' names 'b.bin'",
        ),
    ],
)
def test_what_lies_on_the_hub_is_checked_as_well(file, content, words, hub, no_network, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (hub / "snapshots" / ("a" * 40) / file).write_text(content)
    with pytest.raises(ModelError, match=words):
        load_model("stranger/here")


def test_what_the_user_names_takes_the_place_of_what_the_folder_names(tiny_folder, tmp_path, no_network):
    inner = adapter(tmp_path / "inner", "stranger/model")
    outer = saved(tmp_path / "outer", "prompt", str(inner), system="Be brief.")
    for folder in (inner, outer):
        assert load_model(str(folder), base=str(tiny_folder)).logprobs([QUERY])
        with pytest.raises(ModelNotFoundError):
            load_model(str(folder))
    assert no_network == []


def test_what_the_user_names_is_fetched(tmp_path, monkeypatch):
    asked: list[dict[str, Any]] = []

    def fetch(**source: Any) -> None:
        asked.append(source)
        raise OSError("no network")

    monkeypatch.setattr("conviction.models.backends.transformers.AutoConfig.from_pretrained", fetch)
    with pytest.raises(ModelNotFoundError, match="cannot get 'stranger/model' from the model hub"):
        load_model(str(adapter(tmp_path / "a", "stranger/model")), base="stranger/model")
    assert asked == [{"pretrained_model_name_or_path": "stranger/model", "trust_remote_code": False}]


@pytest.mark.parametrize("kind", ["adapter", "saved"])
def test_a_base_that_no_path_can_be_is_refused(kind, tmp_path):
    folder = (
        adapter(tmp_path / "a", "x\0y") if kind == "adapter" else saved(tmp_path / "a", "prompt", "x\0", system="x")
    )
    with pytest.raises(InputError, match="is no path"):
        load_model(str(folder))


def test_a_base_of_a_model_that_is_no_change_is_refused(tiny_folder):
    with pytest.raises(InputError, match="has no base"):
        load_model(str(tiny_folder), base="smollm2-135m")


def test_the_command_takes_a_base(run, write_topic, tiny_folder, tmp_path, no_network):
    folder, topic = str(adapter(tmp_path / "a", "stranger/model")), str(write_topic())
    assert "--base stranger/model " in failed(run("probe", topic, "--model", folder))
    assert run("probe", topic, "--model", folder, "--base", str(tiny_folder), "--quick")[0] == 0
    assert "has no base" in failed(run("probe", topic, "--model", str(tiny_folder), "--base", str(tiny_folder)))
    assert no_network == []


# -- chains ------------------------------------------------------------------------------------------


def test_a_folder_that_is_its_own_base_is_named(tmp_path):
    folder = saved(tmp_path / "a", "prompt", str(tmp_path / "a"), system="x")
    with pytest.raises(ModelError, match=r"is its own base: .*a → .*a"):
        load_model(str(folder))


def test_a_circle_of_bases_is_named(tmp_path):
    for name, base in {"a": "b", "b": "c", "c": "a/../a"}.items():
        saved(tmp_path / name, "prompt", str(tmp_path / base), system="x")
    with pytest.raises(ModelError, match=r"is its own base: .*a → .*b → .*c → .*a"):
        load_model(str(tmp_path / "a"))


def test_an_adapter_in_a_circle_is_named(tmp_path):
    saved(tmp_path / "a", "prompt", str(adapter(tmp_path / "b", str(tmp_path / "a"))), system="x")
    with pytest.raises(ModelError, match="is its own base"):
        load_model(str(tmp_path / "b"))


def test_a_chain_without_end_is_named(tmp_path):
    for i in range(40):
        saved(tmp_path / str(i), "prompt", str(tmp_path / str(i + 1)), system="x")
    with pytest.raises(ModelError, match="more than 16 changes on each other"):
        load_model(str(tmp_path / "0"))


# -- no network for local things ---------------------------------------------------------------------


@pytest.mark.slow
def test_no_verb_reaches_out_for_local_things(run, tea, tiny_folder, tmp_path, no_network):
    """Every verb, on a topic, data and a model of this machine."""
    topic, model = str(tea), ("--model", str(tiny_folder))
    steps = ("-o", "max_steps=1", "-o", "rank=2", "--guard", "off")
    assert run("probe", topic, *model, "--run", "p", "--quick")[0] in {0, 1}
    assert run("audit", topic, *model)[0] in {0, 1}
    assert run("forecast", "dpo", topic, *model, "--run", "f", "--pilot", "2", *steps)[0] in {0, 1}
    assert run("apply", "dpo", topic, *model, "--run", "a", "--forecast", *steps)[0] in {0, 1}
    assert run("compare", "a")[0] in {0, 1}
    assert run("apply", "system_prompt", topic, *model, "--run", "s")[0] in {0, 1}
    assert run("compare", "a", "s", "--run", "c", "--benign-steps", "0")[0] in {0, 1}
    assert run("study", "system_prompt", topic, *model, "--run", "st", "--benign-steps", "0")[0] in {0, 1, 2}
    assert run("localize", topic, *model, "--run", "l", "--limit", "1")[0] in {0, 1, 2}
    for command in (["report", "st"], ["models"], ["topics"], ["interventions"], ["rule", "length-gap"]):
        assert run(*command)[0] in {0, 1, 2}
    assert run("probe", topic, "--model", "a/model", "--quick")[0] in {0, 1}
    assert no_network == []


@pytest.mark.long
def test_compare_does_not_fetch_the_model_that_a_forecast_names(run, tea, tiny_folder, tmp_path, no_network):
    steps = ("-o", "max_steps=1", "-o", "rank=2", "--guard", "off")
    assert run("apply", "dpo", str(tea), "--model", str(tiny_folder), "--run", "a", "--forecast", *steps)[0] in {0, 1}
    assert run("apply", "system_prompt", str(tea), "--model", str(tiny_folder), "--run", "s")[0] == 0
    for name, change in (("forecast", {"model": "stranger/model"}), ("outcome", {"base": {"id": "stranger/model"}})):
        for folder in ("a", "s"):
            path = tmp_path / folder / f"{name}.json"
            if path.exists():
                path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **change}))
    assert "--model stranger/model " in failed(run("compare", "a"))
    assert "--model stranger/model " in failed(run("compare", "a", "s"))
    assert no_network == []
