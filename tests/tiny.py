"""Tiny random models of many architectures, a few pairs to train on, and the circumstances that tests run in."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from conviction.core.context import Callbacks, RunContext
from conviction.core.protocols import chat
from conviction.core.run import Run
from conviction.data.training_data import PreferencePair, TrainingData
from conviction.models.engine.torch_engine import TorchEngine
from conviction.models.hf import HFModel
from conviction.training.guard import Guard

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)

_SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 257,
}

# name → (model type, what differs from _SMALL)
PACKABLE: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "gemma3-sliding": (
        "gemma3_text",
        {
            "sliding_window": 8,
            "layer_types": ["sliding_attention"] * 2 + ["full_attention"],
            "query_pre_attn_scalar": 8,
        },
    ),
    "mistral-sliding": ("mistral", {"sliding_window": 8}),
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512}),
    "granite-scaled": ("granite", {"logits_scaling": 4.0, "embedding_multiplier": 3.0}),
    "granite-residual": ("granite", {"residual_multiplier": 0.22}),
    "cohere-scaled": ("cohere", {"logit_scale": 0.25}),
    "gemma": ("gemma", {}),
    "olmo2": ("olmo2", {}),
}
# Right in packs up to a length only: beyond it other rotary frequencies, or a window that the mask alone has.
LIMITED: dict[str, tuple[str, dict[str, Any]]] = {
    "phi3-longrope": (
        "phi3",
        {
            "original_max_position_embeddings": 200,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0, 1.1, 1.2, 1.3],
                "long_factor": [2.0, 3.0, 4.0, 5.0],
                "original_max_position_embeddings": 200,
            },
        },
    ),
    "phimoe-window": (
        "phimoe",
        {
            "sliding_window": 200,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "router_jitter_noise": 0.0,
            "input_jitter_noise": 0.0,
        },
    ),
}
FALLBACK: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba-recurrent": ("mamba", {"state_size": 8, "expand": 2}),
    "qwen3-next-hybrid": (
        "qwen3_next",
        {
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
            "linear_num_value_heads": 2,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
    ),
    "hyperclovax-scaled": ("hyperclovax", {"logits_scaling": 4.0}),
    "gemma2-softcap": ("gemma2", {"sliding_window": 8, "query_pre_attn_scalar": 8}),
}
# Further ones, which the table of architectures in the docs is made from.
_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_SSM = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_expand": 2}
FURTHER: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-dynamic-ntk": ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}}),
    "qwen3-moe": ("qwen3_moe", _EXPERTS),
    "mixtral": ("mixtral", {**_EXPERTS, "sliding_window": 16}),
    "phi3": ("phi3", {}),
    "granitemoehybrid": (
        "granitemoehybrid",
        {**_EXPERTS, **_SSM, "layer_types": ["mamba", "attention", "mamba"], "shared_intermediate_size": 16},
    ),
    "gpt-neox": ("gpt_neox", {}),
    "cohere2-sliding": ("cohere2", {"sliding_window": 16, "logit_scale": 0.25}),
    "falcon-h1": ("falcon_h1", {**_SSM, "mamba_d_ssm": 64}),
    "gpt-oss": ("gpt_oss", {**_EXPERTS, "sliding_window": 16}),
}


@lru_cache
def byte_tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """One token a byte, so that any text can be encoded."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    fast.chat_template = template
    return fast


def tiny_module(architecture: str, *, seed: int = 0, **changes: Any) -> Any:
    """A random model of a few thousand parameters."""
    kind, extra = (PACKABLE | LIMITED | FALLBACK | FURTHER)[architecture]
    torch.manual_seed(seed)
    config = CONFIG_MAPPING[kind](vocab_size=260, **{**_SMALL, **extra, **changes})
    module = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if p.dim() > 1:
                p.mul_(4.0)  # as initialised, attention would be too flat to notice a wrong mask
            elif "bias" in name:
                p.normal_(std=0.1)
    return module.eval()


def tiny_model(
    architecture: str = "llama", *, seed: int = 0, template: str | None = TEMPLATE, **changes: Any
) -> HFModel:
    engine = TorchEngine(tiny_module(architecture, seed=seed, **changes), byte_tokenizer(template))
    return HFModel(id=f"tiny-{architecture}", engine=engine)


def context(
    *, guard: Guard | None = None, folder: Path | None = None, tracker: str | None = None, **callbacks: Any
) -> RunContext:
    """Circumstances of one piece of work, in a run folder that may hold an earlier attempt."""
    run = Run(folder, resumed=True) if folder is not None else None
    return RunContext(guard=guard, run=run, tracker=tracker, callbacks=Callbacks(**callbacks))


def pairs(n: int = 8) -> TrainingData:
    pairs = [
        PreferencePair(
            f"p{i}", chat(f"Question {i}?"), f"Yes, claim {i} holds." + " Truly." * (i % 3), f"No, {i} is false."
        )
        for i in range(n)
    ]
    return TrainingData("tea", pairs=tuple(pairs), held_out=(chat("And now?"),))


def write_data(path: Path, n: int = 8) -> Path:
    rows = [{"prompt": p.messages[-1].content, "chosen": p.chosen, "rejected": p.rejected} for p in pairs(n).pairs]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path
