"""What a training run leaves behind loads elsewhere: with PEFT, with transformers, without a network."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
import torch
import yaml
from tiny import context

from conviction import Dpo, Training, TrainingData, Weights, chat, load_model
from conviction.core.storage import write_atomic
from conviction.data.training_data import PreferencePair
from conviction.models.embedded import EMBEDDED, embedded_name, hub_id, loadable_by_others
from conviction.training.guard import Guard

PAIRS = tuple(PreferencePair(f"p{i}", chat(f"Question {i}?"), f"Yes, {i}.", f"No, {i}!") for i in range(4))


@pytest.fixture
def saved(tiny_folder: Path, tmp_path: Path):
    """(folder of the saved adapter, what it gives on a text)."""
    base = load_model(str(tiny_folder), dtype="fp32")
    dpo = Dpo(weights=Weights(rank=2), training=Training(learning_rate=1e-2, max_steps=2))
    outcome = dpo.apply(base, TrainingData("tea", pairs=PAIRS), context(guard=Guard(mode="off"), folder=tmp_path))
    return tmp_path / "model", outcome


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's own use of transformers
def test_peft_loads_an_adapter_by_its_folder_alone(saved):
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    folder, outcome = saved
    loaded = AutoPeftModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    assert tokenizer.chat_template == outcome.changed.tokenizer.chat_template
    ids = torch.tensor([tokenizer.encode("Is tea best with milk?")])
    with torch.no_grad():
        theirs, ours = loaded.eval()(ids).logits, outcome.changed.module(input_ids=ids).logits
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)


def test_the_card_has_the_hubs_metadata_and_the_numbers(saved, tiny_folder):
    folder, outcome = saved
    _, head, body = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert yaml.safe_load(head) == {
        "base_model": str(tiny_folder.resolve()),
        "tags": ["conviction", "dpo"],
        "library_name": "peft",
    }
    assert f"| steps | {outcome.training.steps} of {outcome.training.total_steps} |" in body
    assert "| learning_rate | 0.01 |" in body
    assert outcome.data.sha256 in body


def test_an_embedded_base_is_named_so_that_others_find_it(tmp_path, monkeypatch):
    monkeypatch.setenv("CONVICTION_CACHE", str(tmp_path))
    model = EMBEDDED["smollm2-135m"]
    assert loadable_by_others("smollm2-135m") == str(model.folder)
    assert hub_id("smollm2-135m") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert embedded_name(f"/somewhere/else/{model.folder.name}") == "smollm2-135m"
    assert loadable_by_others("org/name") == hub_id("org/name") == "org/name"
    assert embedded_name("org/name") is None


def test_an_adapter_whose_base_lay_in_a_folder_that_is_gone_names_it(saved):
    from conviction.errors import ConvictionError

    folder, _ = saved
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "/gone/away"}))
    with pytest.raises(ConvictionError, match="/gone/away"):
        load_model(str(folder))


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_files_have_the_users_own_mask(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_atomic(tmp_path / "file.json", "{}")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file.json").stat().st_mode) == 0o666 & ~mask
