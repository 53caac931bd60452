"""Weights that are stored as codes: scored as they are, changed as numbers, or refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import byte_tokenizer, context, pairs, tiny_model, tiny_module
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from conviction import Dpo, Memit, Rome, Sft, load_model
from conviction.core.protocols import Query, chat
from conviction.data.facts import Fact
from conviction.errors import InputError
from conviction.models.engine.torch_engine import TorchEngine
from conviction.models.hf import HFModel

QUERY = Query(chat("What is the drink of the town?"), ("Milk, and no more.", "Tea."))
DATA = dataclasses.replace(pairs(4), facts=(Fact("f1", "The drink of {} is", "the town", "milk"),))

# bitsandbytes calls torch's own names of before
pytestmark = pytest.mark.filterwarnings("ignore:.*_check_is_size.*:FutureWarning")


@pytest.fixture(scope="module", params=["8 bits", "4 bits"])
def quantised(request, tmp_path_factory) -> Path:
    """A folder as ``save_pretrained`` writes it after bitsandbytes (in the extra ``bench``)."""
    pytest.importorskip("bitsandbytes")
    whole, folder = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("quantised")
    tiny_module(
        "llama", max_position_embeddings=4096, hidden_size=64, num_key_value_heads=4, head_dim=16
    ).save_pretrained(whole)
    eight = request.param == "8 bits"
    how = BitsAndBytesConfig(load_in_8bit=eight, load_in_4bit=not eight, bnb_4bit_compute_dtype=torch.float32)
    AutoModelForCausalLM.from_pretrained(whole, quantization_config=how, device_map="cpu").save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def test_scores_are_those_of_the_modules_own_forward(quantised):
    model = load_model(quantised)
    prompt, answers = model.encoder.encode(QUERY.messages, QUERY.answers)
    for answer, scored in zip(answers, model.logprobs([QUERY])[0], strict=True):
        with torch.no_grad():
            logits = model.module(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        expected = torch.log_softmax(logits.float(), -1).gather(1, torch.tensor(answer)[:, None])[:, 0]
        assert torch.tensor(scored.logprobs) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("method", [Dpo(max_steps=2, rank=2), Rome(layer=1)], ids=lambda m: m.name)
def test_changes_are_made_to_a_dequantised_copy_and_load_again(quantised, method, tmp_path):
    model = load_model(quantised)
    before = model.logprobs([QUERY])
    outcome = method.apply(model, DATA, context(folder=tmp_path / "run"))
    assert any("stored as codes (bitsandbytes)" in note for note in outcome.notes)
    assert load_model(quantised).logprobs([QUERY]) == before, "the given model stays as it is"
    changed = outcome.changed.logprobs([QUERY])[0][0].logprobs
    assert changed != before[0][0].logprobs
    again = load_model(tmp_path / "run" / "model")
    assert again.logprobs([QUERY])[0][0].logprobs == pytest.approx(changed, abs=0.02), "up to the codes' own arithmetic"


def test_fp8_weights_are_numbers_on_a_cpu(tmp_path):
    """Blocks of 128 by 128 with a scale each, as DeepSeek stores them: transformers dequantises them at load."""
    block, sizes = 128, {"hidden_size": 128, "intermediate_size": 128, "head_dim": 32, "num_key_value_heads": 4}
    module = tiny_module("llama", **sizes)
    module.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    stored: dict[str, torch.Tensor] = {}
    for name, weight in load_file(tmp_path / "model.safetensors").items():
        if name.startswith("model.layers") and weight.shape == (block, block):
            scale = weight.abs().max() / torch.finfo(torch.float8_e4m3fn).max
            stored |= {name: (weight / scale).to(torch.float8_e4m3fn), f"{name}_scale_inv": scale.view(1, 1)}
        else:
            stored[name] = weight
    assert len(stored) > len(module.state_dict()), "something was quantised"
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [block, block]}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model = load_model(tmp_path, device="cpu")
    whole = HFModel(id="whole", engine=TorchEngine(module, byte_tokenizer()))
    for one, other in zip(model.logprobs([QUERY])[0], whole.logprobs([QUERY])[0], strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=0.2), "three bits of mantissa"
    assert Dpo(max_steps=1, rank=2).apply(model, DATA, context()).changed.logprobs([QUERY])


@pytest.mark.parametrize("method", [Sft(max_steps=1), Memit(layers=1), Rome(layer=1)], ids=lambda m: m.name)
def test_codes_without_a_way_back_are_scored_and_not_changed(method):
    """Whatever is added to such parameters is no update of the weights."""
    model = tiny_model()
    model.module.config.quantization_config = {"quant_method": "fp8"}
    with pytest.raises(InputError, match=r"are stored as codes \(fp8\)"):
        method.apply(model, DATA, context())
    assert model.logprobs([QUERY])
