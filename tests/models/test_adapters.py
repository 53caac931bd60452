"""Adapters from folders: PEFT's own logits are the oracle, whatever the adapter touches and brings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tiny import TEMPLATE, byte_tokenizer, pairs, tiny_module
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM

from conviction import Query, chat
from conviction.errors import InputError, ModelError
from conviction.interventions.sft import Sft
from conviction.models import load_model
from conviction.models.backends.transformers import _source
from conviction.models.copies import shallow_copy
from conviction.models.engine.logprobs import find_head
from conviction.models.engine.unpacked import score_unpacked
from conviction.models.lora import load_lora, merged_copy

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning", "ignore::UserWarning")

IDS = torch.randint(0, 256, (2, 23), generator=torch.Generator().manual_seed(0))
QUERY = Query(chat("Which tea?"), ("A green one.", "None."))
KINDS: dict[str, dict[str, Any]] = {
    "body": {"target_modules": ["q_proj"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "both whole": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "some tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [65, 66]},
}
PACKED = {("body", False), ("body", True), ("embeddings", False), ("embeddings", True), ("some tokens", False)}


def logits(module: Any) -> torch.Tensor:
    with torch.no_grad():
        return module(input_ids=IDS, use_cache=False).logits


def folders(
    tmp_path: Path, *, tied: bool = False, rows: int | None = None, tokenizer: Any = None, **config: Any
) -> Any:
    """A base and PEFT's adapter on it in ``tmp_path``; the adapted model as PEFT has it."""
    base = tiny_module("llama", tie_word_embeddings=tied)
    base.save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    if rows is not None:
        base.resize_token_embeddings(rows, mean_resizing=False)
    theirs = peft.get_peft_model(base, peft.LoraConfig(r=4, task_type="CAUSAL_LM", **config)).eval()
    theirs.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in theirs.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=generator) * 0.2)
    theirs.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=rows is not None)
    if tokenizer is not None:
        tokenizer.save_pretrained(tmp_path / "adapter")
    return theirs


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_peft_whatever_the_adapter_touches(kind, tied, tmp_path):
    theirs = folders(tmp_path, tied=tied, **KINDS[kind])
    model = load_model(str(tmp_path / "adapter"))
    prompt, answers = model.encoder.encode(QUERY.messages, QUERY.answers)
    expected = score_unpacked(theirs, [(prompt, answer) for answer in answers])
    base = load_model(str(tmp_path / "base")).logprobs([QUERY])[0]
    for own, row, plain in zip(model.logprobs([QUERY])[0], expected, base, strict=True):
        assert own.logprobs == pytest.approx(row, abs=1e-4)
        assert abs(own.logp_mean - plain.logp_mean) > 1e-3, "the adapter does something"
    assert model.check.packed == ((kind, tied) in PACKED)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_copy_says_the_same_and_can_be_saved(kind, tied, tmp_path):
    theirs = folders(tmp_path, tied=tied, **KINDS[kind])
    module = tiny_module("llama", tie_word_embeddings=tied)
    load_lora(module, tmp_path / "adapter")
    merged = merged_copy(module)
    torch.testing.assert_close(logits(merged), logits(theirs), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits(module), logits(theirs), atol=1e-5, rtol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(again), logits(theirs), atol=1e-5, rtol=1e-5)
    assert module.config.tie_word_embeddings == tied


def test_a_head_with_an_adapter_is_not_read_past_it(tmp_path):
    folders(tmp_path, **KINDS["head"])
    model = load_model(str(tmp_path / "adapter"))
    with pytest.raises(InputError, match="head of LlamaForCausalLM is a FusedLinear"):
        find_head(model.module)
    assert type(find_head(shallow_copy(model, id="merged").module).weight) is torch.nn.Parameter


def test_an_adapter_with_biases_that_no_weights_can_hold_is_probed_and_not_trained_on(tmp_path):
    folders(tmp_path, target_modules=["q_proj"], lora_bias=True)
    model = load_model(str(tmp_path / "adapter"))
    assert model.check.packed
    with pytest.raises(InputError, match=r"lora_bias for .*q_proj"):
        Sft().apply(model, pairs(4))


# -- what lies beside an adapter ----------------------------------------------------------------


def test_a_chat_template_beside_an_adapter_is_used(tmp_path):
    folders(tmp_path, **KINDS["body"])
    own = TEMPLATE.replace("<|user|>", "(user)").replace("<|{{ m.role }}|>", "({{ m.role }})")
    (tmp_path / "adapter" / "chat_template.jinja").write_text(own)
    assert load_model(str(tmp_path / "adapter")).encoder.render(chat("q")).startswith("(user)q")
    assert load_model(str(tmp_path / "base")).encoder.render(chat("q")).startswith("<|user|>q")


def larger_tokenizer() -> Any:
    own = byte_tokenizer.__wrapped__("{% for m in messages %}<|turn|>{{ m.content }}<|end|>\n{% endfor %}<|turn|>")
    own.add_tokens([AddedToken(text, special=True) for text in ("<|turn|>", "<|end|>", "<a>", "<b>", "<c>")])
    return own  # 263 tokens: more than the 260 embeddings of the base


@pytest.mark.parametrize("tied", [False, True])
def test_added_tokens_bring_their_embeddings(tied, tmp_path):
    own = larger_tokenizer()
    theirs = folders(tmp_path, tied=tied, rows=len(own), tokenizer=own, **KINDS["body"])
    model = load_model(str(tmp_path / "adapter"))
    prompt, answers = model.encoder.encode(QUERY.messages, ("A <c>.",))
    assert max(answers[0]) == own.convert_tokens_to_ids("<c>")
    assert model.encoder.encode_ending(QUERY.messages) == (own.convert_tokens_to_ids("<|end|>"),)
    expected = score_unpacked(theirs, [(prompt, answers[0])])[0]
    score = model.logprobs([Query(QUERY.messages, ("A <c>.",))])[0][0]
    assert score.logprobs == pytest.approx(expected, abs=1e-4)


def test_added_tokens_without_embeddings_are_refused(tmp_path):
    folders(tmp_path, tokenizer=larger_tokenizer(), **KINDS["body"])
    with pytest.raises(ModelError, match="embeddings for: <a>, <b>, <c>") as caught:
        load_model(str(tmp_path / "adapter"))
    assert "save_embedding_layers" in caught.value.hint


def test_padding_needs_no_embedding(tmp_path):
    own = larger_tokenizer()
    own.add_special_tokens({"pad_token": "<c>"})
    folders(tmp_path, tokenizer=own, **KINDS["body"])
    with pytest.raises(ModelError, match=r"for: <a>, <b>$"):
        load_model(str(tmp_path / "adapter"))


def test_a_damaged_tokenizer_beside_an_adapter_is_named(tmp_path):
    folders(tmp_path, **KINDS["body"])
    (tmp_path / "adapter" / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="tokenizer in the adapter's folder"):
        load_model(str(tmp_path / "adapter"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"fine_tune_type": "lora", "model": "org/base", "lora_parameters": {"rank": 8}}, "an adapter of MLX"),
        ({"peft_type": "LORA", "r": 8}, "does not name its base"),
        ({"peft_type": "LORA", "base_model_name_or_path": None}, "does not name its base"),
    ],
)
def test_an_adapter_that_is_not_pefts_or_names_no_base_is_told_so(settings, words, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=words) as caught:
        load_model(str(tmp_path))
    assert ("mlx_lm.fuse --model org/base" in caught.value.hint) == ("model" in settings)


@pytest.mark.parametrize("name", ["x.gguf", "X.GGUF"])
def test_a_gguf_file_is_known_by_its_ending_in_any_case(name, tmp_path):
    (tmp_path / name).touch()
    assert _source(str(tmp_path / name), print)["gguf_file"] == name
