"""LoRA: PEFT's own layers, files and wrapper are the oracle; lean layers against transformers' own."""

from __future__ import annotations

import copy
import json
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora import Linear as PeftLinear
from tiny import tiny_module
from torch import nn
from transformers.pytorch_utils import Conv1D

from conviction.errors import InputError
from conviction.models.lora import (
    FusedLinear,
    add_lora,
    decoder_layers,
    first_trained_layer,
    load_lora,
    lora_parameters,
    merged_copy,
    save_lora,
)
from conviction.training.recompute import use_memory_efficient_layers

IDS = torch.randint(0, 256, (2, 23), generator=torch.Generator().manual_seed(0))

# transformers deprecates what PEFT's wrapper (not our way in) asks it
wrapper = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


def fill(module: nn.Module, seed: int = 1) -> None:
    """Give A and B values: a new adapter's B is zero, and proves nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, p in lora_parameters(module):
            p.copy_(torch.randn(p.shape, generator=generator) * 0.2)


def with_adapter(architecture: str, **changes: Any) -> Any:
    module = tiny_module(architecture)
    add_lora(module, **{"rank": 4, "scale": 1.5, **changes})
    fill(module)
    return module


def logits(module: Any) -> torch.Tensor:
    with torch.no_grad():
        return module(input_ids=IDS, use_cache=False).logits


def layer_pair(base: nn.Module, *, dropout: float = 0.0, **changes: Any) -> tuple[Any, Any]:
    """(ours, PEFT's) over one base layer, with the same A and B."""
    pair = []
    for fused in (True, False):
        holder = nn.ModuleDict({"target": copy.deepcopy(base)})
        config = peft.LoraConfig(r=4, lora_alpha=6.0, lora_dropout=dropout, target_modules=["target"], **changes)
        if fused:
            config._register_custom_module({nn.Linear: FusedLinear})
        peft.inject_adapter_in_model(config, holder)
        fill(holder)
        pair.append(holder["target"])
    assert type(pair[0]) is FusedLinear
    assert type(pair[1]) is PeftLinear
    return pair[0], pair[1]


def run_layer(layer: Any, x: torch.Tensor, towards: torch.Tensor) -> list[torch.Tensor]:
    """Output, and gradients of input, A and B."""
    x = x.clone().requires_grad_(True)
    y = layer(x)
    layer.zero_grad()
    (y.float() * towards).sum().backward()
    assert layer.base_layer.weight.grad is None
    return [y.detach(), x.grad, *(p.grad for _, p in lora_parameters(layer))]


# -- the layer ---------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(2, 5, 12), (7, 12), (1, 1, 12)])
def test_the_fused_layer_equals_pefts(bias, shape):
    ours, theirs = layer_pair(nn.Linear(12, 20, bias=bias))
    x, towards = torch.randn(shape), torch.randn(*shape[:-1], 20)
    assert ours.is_plain(x)
    for mine, wanted in zip(run_layer(ours, x, towards), run_layer(theirs, x, towards), strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(ours(x), ours.base_layer(x)), "the adapter says something"


def test_in_half_precision_the_fused_layer_is_as_near_to_fp32_as_pefts():
    base = nn.Linear(64, 48)
    exact = run_layer(layer_pair(base)[1], x := torch.randn(3, 9, 64), towards := torch.randn(3, 9, 48))
    ours, theirs = layer_pair(base.to(torch.bfloat16))
    for layer in (ours, theirs):
        for _, p in lora_parameters(layer):
            p.data = p.data.float()
    result = [run_layer(layer, x.to(torch.bfloat16), towards) for layer in (ours, theirs)]
    for mine, peers, wanted in zip(*result, exact, strict=True):
        errors = [float((t.float() - wanted).norm() / wanted.norm()) for t in (mine, peers)]
        assert errors[0] <= max(0.01, 1.5 * errors[1])
    assert result[0][2].dtype == torch.float32, "gradients of A and B are as fine as they"


@pytest.mark.parametrize(
    ("bias", "changes"),
    [
        (False, {"use_dora": True}),
        pytest.param(
            True, {"lora_bias": True}, marks=pytest.mark.filterwarnings("ignore::peft.utils.warning.PeftWarning")
        ),
    ],
)
def test_unusual_adapters_are_left_to_peft(bias, changes):
    ours, theirs = layer_pair(nn.Linear(12, 20, bias=bias), **changes)
    x = torch.randn(4, 12)
    assert not ours.is_plain(x)
    torch.testing.assert_close(ours(x), theirs(x))


def test_dropout_is_pefts():
    ours, theirs = layer_pair(nn.Linear(12, 20), dropout=0.5)
    x = torch.randn(4, 12)
    outputs = []
    for layer in (ours.train(), theirs.train()):
        torch.manual_seed(3)
        outputs.append(layer(x))
    torch.testing.assert_close(*outputs)
    assert not torch.equal(ours(x), ours(x)), "dropout drops"
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize("turn_off", [lambda m: m.enable_adapters(False), lambda m: m.merge()])
def test_switched_off_and_merged_layers_are_pefts(turn_off):
    ours, theirs = layer_pair(nn.Linear(12, 20))
    for layer in (ours, theirs):
        turn_off(layer)
    x = torch.randn(4, 12)
    torch.testing.assert_close(ours(x), theirs(x))


# -- the adapter -----------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2", "gemma3-sliding"])
def test_a_new_adapter_changes_nothing_and_is_all_that_is_trained(architecture):
    module = tiny_module(architecture)
    before = logits(module)
    add_lora(module, rank=4, scale=2.0)
    torch.testing.assert_close(logits(module), before, atol=1e-6, rtol=0)
    trained = {n for n, p in module.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in lora_parameters(module)}
    assert all(p.dtype == torch.float32 for _, p in lora_parameters(module))
    linear = [m for m in module.base_model.modules() if isinstance(m, PeftLinear)]
    layers = len(decoder_layers(module))
    assert len(linear) == layers * (4 if architecture == "gpt2" else 7), "every linear layer of the body, not the head"


def test_the_seed_decides_the_adapter_and_nothing_else():
    adapters = []
    state = torch.get_rng_state()
    for seed in (0, 0, 1):
        module = tiny_module("llama")
        torch.set_rng_state(state)
        add_lora(module, rank=4, scale=2.0, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        adapters.append(torch.cat([p.detach().flatten() for _, p in lora_parameters(module)]))
    assert torch.equal(adapters[0], adapters[1])
    assert not torch.equal(adapters[0], adapters[2])


def test_an_adapter_on_half_precision_weights_is_fp32():
    module = tiny_module("llama").to(torch.bfloat16)
    add_lora(module, rank=2, scale=1.0)
    assert {p.dtype for _, p in lora_parameters(module)} == {torch.float32}
    assert logits(module).dtype == torch.bfloat16


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_num_layers_takes_the_last(architecture, count):
    module = with_adapter(architecture, num_layers=count)
    adapted = [any("lora_" in n for n, _ in layer.named_parameters()) for layer in decoder_layers(module)]
    assert adapted == [False] * (3 - count) + [True] * count
    assert first_trained_layer(module, count) == 3 - count


def test_more_layers_than_there_are_is_an_error():
    with pytest.raises(InputError, match="num_layers is 4, the model has 3 layers") as caught:
        add_lora(tiny_module("llama"), rank=4, scale=1.0, num_layers=4)
    assert "3" in caught.value.hint


def test_target_modules_are_taken_by_name():
    module = with_adapter("llama", target_modules=("v_proj", "q_proj"))
    adapted = {n.rpartition(".")[2] for n, m in module.named_modules() if isinstance(m, PeftLinear)}
    assert adapted == {"q_proj", "v_proj"}


@pytest.mark.parametrize(
    ("architecture", "wrong", "near"),
    [("llama", "query_proj", "q_proj"), ("gpt2", "c_atn", "c_attn"), ("llama", "lm_head", "")],
)
def test_an_unknown_target_module_is_named_with_those_there_are(architecture, wrong, near):
    with pytest.raises(InputError, match=f"no linear layer '{wrong}'") as caught:
        add_lora(tiny_module(architecture), rank=4, scale=1.0, target_modules=(wrong,))
    assert (f"did you mean '{near}'" if near else "use some of") in caught.value.hint
    assert ("o_proj" if architecture == "llama" else "c_proj") in caught.value.hint


# -- files -----------------------------------------------------------------------


@wrapper
@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("llama", {}),
        ("qwen2", {"target_modules": ("q_proj", "down_proj"), "scale": 0.3}),
        ("gpt2", {}),
        ("llama", {"num_layers": 1}),
        ("gpt2", {"num_layers": 2}),
    ],
)
def test_a_saved_adapter_is_read_by_peft_and_by_us(architecture, changes, tmp_path):
    module = with_adapter(architecture, **changes)
    save_lora(module, tmp_path / "a", base="some/base")
    result = peft.PeftModel.from_pretrained(tiny_module(architecture), str(tmp_path / "a")).eval()
    expected = logits(module)
    torch.testing.assert_close(logits(result), expected, atol=1e-5, rtol=1e-5)
    again = tiny_module(architecture)
    load_lora(again, tmp_path / "a")
    torch.testing.assert_close(logits(again), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(expected, logits(tiny_module(architecture)), atol=1e-2)


def test_a_saved_adapter_names_its_base_and_is_no_pickle(tmp_path):
    module = with_adapter("llama", num_layers=2)
    save_lora(module, tmp_path, base="some/base")
    assert {p.name for p in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "some/base"
    assert (config["r"], config["lora_alpha"]) == (4, 6.0), "any reader multiplies by alpha / r = 1.5"
    assert config["layers_to_transform"] == [1, 2]
    assert module.peft_config["default"].base_model_name_or_path != "some/base", "the live adapter stays as it is"


@wrapper
@pytest.mark.parametrize("changes", [{"use_dora": True}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 2}}])
def test_adapters_that_peft_made_are_read_and_merged(changes, tmp_path):
    theirs = peft.get_peft_model(
        tiny_module("llama"),
        peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM", **changes),
    ).eval()
    with torch.no_grad():
        for _, p in lora_parameters(theirs):
            p.mul_(1.5).add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(2)) * 0.1)
    theirs.save_pretrained(str(tmp_path))
    module = tiny_module("llama")
    load_lora(module, tmp_path)
    torch.testing.assert_close(logits(module), logits(theirs), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits(merged_copy(module)), logits(theirs), atol=1e-4, rtol=1e-4)


def test_an_adapter_of_another_model_is_refused(tmp_path):
    save_lora(with_adapter("llama"), tmp_path / "three", base="x")
    with pytest.raises(ValueError, match="do not fit LlamaForCausalLM"):
        load_lora(tiny_module("llama", num_hidden_layers=2), tmp_path / "three")
    with pytest.raises(ValueError, match="do not fit LlamaForCausalLM"):
        load_lora(tiny_module("llama", num_hidden_layers=4), tmp_path / "three")
    with pytest.raises(ValueError, match=r"(?i)not found|no modules"):
        load_lora(tiny_module("gpt2"), tmp_path / "three")


# -- merging ------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
def test_a_merged_copy_says_the_same_without_an_adapter(architecture):
    module = with_adapter(architecture)
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    expected = logits(module)
    merged = merged_copy(module)
    torch.testing.assert_close(logits(merged), expected, atol=1e-4, rtol=1e-4)
    assert not hasattr(merged, "peft_config")
    assert not any(isinstance(m, PeftLinear) for m in merged.modules())
    assert {n for n, _ in merged.named_parameters()} == {n for n, _ in tiny_module(architecture).named_parameters()}
    # the original is as it was, and stays so whatever happens to what was merged
    for name, p in module.named_parameters():
        assert torch.equal(p, before[name]), name
    with torch.no_grad():
        for m in merged.base_model.modules():
            if isinstance(m, nn.Linear | Conv1D):
                m.weight.zero_()
    assert torch.equal(logits(module), expected)


def test_a_merged_copy_holds_no_second_copy_of_what_the_adapter_leaves_alone():
    module = with_adapter("llama", num_layers=1)
    merged = merged_copy(module)
    own, twin = dict(module.named_parameters()), dict(merged.named_parameters())
    shared = {n for n in twin if n in own and own[n].data_ptr() == twin[n].data_ptr()}
    assert "model.embed_tokens.weight" in shared
    assert "model.layers.0.mlp.down_proj.weight" in shared
    assert not any(n.startswith("model.layers.2") and "proj" in n for n in shared)


def test_a_merged_copy_in_half_precision_keeps_an_update_that_would_round_away():
    module = with_adapter("llama", target_modules=("q_proj",)).to(torch.bfloat16)
    for _, p in lora_parameters(module):
        p.data = p.data.float() * 1e-3
    layer = decoder_layers(module)[0].self_attn.q_proj
    update = 1.5 * (layer.lora_B.default.weight @ layer.lora_A.default.weight)
    weight = layer.base_layer.weight
    lost = float(((weight.float() + update).to(torch.bfloat16) == weight).float().mean())
    assert lost > 0.5, "in 16 bits most of the update is nothing"
    merged = merged_copy(module)
    torch.testing.assert_close(decoder_layers(merged)[0].self_attn.q_proj.weight, weight.float() + update)
    assert {p.dtype for p in merged.parameters()} == {torch.float32}
    assert {p.dtype for p in module.parameters() if p is not None} == {torch.bfloat16, torch.float32}


def test_a_merged_copy_of_lean_layers_is_its_own():
    module = with_adapter("llama")
    use_memory_efficient_layers(module)
    expected = logits(module)
    merged = merged_copy(module)
    for child in merged.modules():
        forward = child.__dict__.get("forward")
        assert forward is None or forward.__self__ is child
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()  # shared tensors too; what was merged is not
    assert decoder_layers(merged)[0].mlp.down_proj.weight.abs().sum() > 0
    assert not torch.equal(logits(merged), expected)


# -- lean layers -------------------------------------------------------------------


def gradients(module: Any, *, everything: bool) -> dict[str, torch.Tensor]:
    for p in module.parameters():
        p.requires_grad_(p.requires_grad or everything)
    module.zero_grad()
    out = module(input_ids=IDS, use_cache=False).logits
    torch.log_softmax(out, -1).gather(-1, IDS.roll(-1, 1)[..., None]).sum().backward()
    return {n: p.grad for n, p in module.named_parameters() if p.grad is not None}


LEAN = {
    "llama": ["LlamaAttention", "LlamaMLP", "LlamaRMSNorm"],
    "qwen2": ["Qwen2Attention", "Qwen2MLP", "Qwen2RMSNorm"],
    "qwen3": ["Qwen3Attention", "Qwen3MLP", "Qwen3RMSNorm"],
    "granite-scaled": ["GraniteAttention", "GraniteMLP", "GraniteRMSNorm"],
    "mistral-sliding": ["MistralAttention", "MistralMLP", "MistralRMSNorm"],
    "gemma3-sliding": ["Gemma3Attention"],  # gelu, and norms with 1 + w
    "gemma2-softcap": ["Gemma2Attention"],
    "gpt2": [],
}


@pytest.mark.parametrize("tuned", ["lora", "down_proj", "full"])
@pytest.mark.parametrize("architecture", LEAN)
def test_lean_layers_give_the_same_outputs_and_gradients(architecture, tuned):
    def build() -> Any:
        if tuned == "full" or (tuned == "down_proj" and architecture == "gpt2"):
            return tiny_module(architecture)
        return with_adapter(architecture, **({"target_modules": (tuned,)} if tuned == "down_proj" else {}))

    plain, preferred_pole = build(), build()
    assert use_memory_efficient_layers(preferred_pole) == LEAN[architecture]
    torch.testing.assert_close(logits(preferred_pole), logits(plain), atol=1e-5, rtol=1e-5)
    expected = gradients(plain, everything=tuned == "full")
    result = gradients(preferred_pole, everything=tuned == "full")
    assert result.keys() == expected.keys()
    for name, wanted in expected.items():
        size = float(wanted.abs().max())
        torch.testing.assert_close(result[name], wanted, atol=1e-5 * max(1.0, size), rtol=1e-4, msg=name)


@pytest.mark.parametrize("strength", [1.0, 0.25])
def test_in_half_precision_another_activation_is_not_taken_for_silu(strength):
    """Weights as initialised give gates so near 0 that gelu and silu agree to bf16's rounding."""
    module = tiny_module("gemma3-sliding")
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(strength)
    assert use_memory_efficient_layers(module.to(torch.bfloat16)) == ["Gemma3Attention"]


def test_lean_layers_in_half_precision_are_as_near_to_fp32_as_the_plain_ones():
    exact = logits(with_adapter("llama"))
    errors = []
    for preferred_pole in (True, False):
        module = with_adapter("llama").to(torch.bfloat16)
        if preferred_pole:
            assert use_memory_efficient_layers(module)
        errors.append(float((logits(module).float() - exact).norm()))
    assert errors[0] <= 1.2 * errors[1]


def test_lean_gradients_in_half_precision_are_as_near_to_fp32_as_the_plain_ones():
    exact = gradients(with_adapter("llama"), everything=False)
    errors = []
    for preferred_pole in (True, False):
        module = with_adapter("llama")
        for p in module.parameters():
            if not p.requires_grad:
                p.data = p.data.to(torch.bfloat16)
        if preferred_pole:
            assert use_memory_efficient_layers(module)
        result = gradients(module, everything=False)
        errors.append(sum(float((result[n].float() - g).norm() / g.norm()) for n, g in exact.items()))
    assert errors[0] <= 1.2 * errors[1]


@pytest.mark.parametrize("odd", ["scale", "frozen", "missing"])
def test_projections_that_cannot_be_computed_together_are_computed_one_by_one(odd):
    """Another multiplier for one of q, k, v; an adapter that some lack: the same numbers as without."""
    targets = ("q_proj", "v_proj", "gate_proj") if odd == "missing" else None
    plain, preferred_pole = (
        with_adapter("llama", **({"target_modules": targets} if targets else {})) for _ in range(2)
    )
    for module in (plain, preferred_pole):
        attention = module.model.layers[0].self_attn
        if odd == "scale":
            attention.k_proj.scaling["default"] *= 3
        if odd == "frozen":
            for p in attention.k_proj.parameters():
                p.requires_grad_(False)
    use_memory_efficient_layers(preferred_pole)
    expected, result = (gradients(module, everything=False) for module in (plain, preferred_pole))
    assert result.keys() == expected.keys()
    for name, wanted in expected.items():
        torch.testing.assert_close(result[name], wanted, atol=1e-5, rtol=1e-4, msg=name)
    assert all(getattr(layer, "ready", None) is None for layer in preferred_pole.modules()), "nothing is left behind"


def test_a_lean_norm_leaves_its_input_alone():
    """What enters a norm is the residual stream: it belongs to other layers, and to whoever passes it in."""
    module = tiny_module("llama")
    use_memory_efficient_layers(module)
    x = torch.randn(2, 5, 32, requires_grad=True)
    kept = x.detach().clone()
    y = module.model.norm(x).square().sum()
    first = torch.autograd.grad(y, x, retain_graph=True)[0]
    assert torch.equal(x.detach(), kept)
    assert torch.equal(torch.autograd.grad(y, x)[0], first), "backward can be asked twice"


def test_a_norm_or_mlp_that_computes_otherwise_is_left_alone():
    class OddRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.variance_epsilon = nn.Parameter(torch.ones(32)), 1e-6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * (1 + self.weight)

    module = tiny_module("llama", hidden_act="gelu")
    module.model.norm = OddRMSNorm()
    before = logits(module)
    assert use_memory_efficient_layers(module) == ["LlamaAttention", "LlamaRMSNorm"]
    torch.testing.assert_close(logits(module), before, atol=1e-5, rtol=1e-5)
