"""DPO steps against TRL's DPOTrainer: pairs per second and peak memory, each run in a process of its own, alternating.

python -m benchmarks.training                   everything
python -m benchmarks.training worker KIND …     one run (what the parent starts)
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import save
from benchmarks.pairs import shaped_pairs

RATE, RANK, ALPHA = 1e-4, 8, 16.0
ROUNDS = 2


def peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def embedded() -> str:
    from conviction.models.embedded import EMBEDDED, ensure

    return str(ensure(EMBEDDED["smollm2-135m"]))


def ours(shape: str, pairs: int, per_step: int, epochs: int, last: int | None) -> dict[str, Any]:
    """Our loop as a user runs it: bf16, LoRA, the guard at its defaults, reference and activations computed first."""
    from transformers import AutoTokenizer

    from conviction.core.context import Callbacks, RunContext
    from conviction.data.formats import training_data_from_rows
    from conviction.interventions.dpo import Dpo
    from conviction.models.loading import load_model
    from conviction.training.settings import Training, Weights

    folder = embedded()
    rows = shaped_pairs(shape, pairs, AutoTokenizer.from_pretrained(folder))
    ends: list[float] = []
    sampled: list[bool] = []

    def step(record: Any, _total: int) -> None:
        ends.append(time.perf_counter())
        sampled.append("samples" in record["guard"])

    with tempfile.TemporaryDirectory() as cache:
        os.environ["CONVICTION_CACHE"] = cache  # the reference is computed, not found
        began = time.perf_counter()
        model = load_model(folder, dtype="bf16")
        Dpo(
            weights=Weights(rank=RANK, alpha=ALPHA, num_layers=last),
            training=Training(
                learning_rate=RATE, epochs=epochs, batch_size=per_step, warmup=0.0, schedule="constant",
                checkpoint_every=0,
            ),
        ).apply(
            model,
            training_data_from_rows(rows, name=shape),
            ctx=RunContext(callbacks=Callbacks(on_step=step)),
        )  # fmt: skip
        total = time.perf_counter() - began
    seconds = list(zip((b - a for a, b in itertools.pairwise(ends)), sampled[1:], strict=True))
    return {
        "step_seconds": [s for s, with_samples in seconds if not with_samples],
        "sampling_step_seconds": [s for s, with_samples in seconds if with_samples],
        "total": total,
        "peak_mb": peak_mb(),
    }


def trl(shape: str, pairs: int, per_step: int, epochs: int, last: int | None, *, best: bool) -> dict[str, Any]:
    """TRL's trainer: at its best here (bf16, precomputed reference, no checkpointing, single pairs), or as it comes."""
    os.environ |= {"TRL_EXPERIMENTAL_SILENCE": "1", "CI": "1", "HF_HUB_OFFLINE": "1"}
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    folder = embedded()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = shaped_pairs(shape, pairs, tokenizer)
    chats = [
        {k: [{"role": "user" if k == "prompt" else "assistant", "content": v}] for k, v in r.items()} for r in rows
    ]
    seconds: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(time.perf_counter() - self.began)

    fast = {"precompute_ref_log_probs": True, "gradient_checkpointing": False, "bf16": True}
    with tempfile.TemporaryDirectory() as output:
        arguments = DPOConfig(
            output_dir=output, per_device_train_batch_size=1, gradient_accumulation_steps=per_step,
            num_train_epochs=epochs, learning_rate=RATE, lr_scheduler_type="constant", max_length=2048, use_cpu=True,
            report_to="none", save_strategy="no", disable_tqdm=True, logging_steps=1,
            model_init_kwargs={"dtype": "bfloat16"} if best else {}, **(fast if best else {"bf16": False}),
        )  # fmt: skip
        layers = list(range(30 - last, 30)) if last else None
        began = time.perf_counter()
        trainer = DPOTrainer(
            model=folder,
            args=arguments,
            train_dataset=Dataset.from_list(chats),
            processing_class=tokenizer,
            peft_config=LoraConfig(
                r=RANK,
                lora_alpha=ALPHA,
                lora_dropout=0.0,
                task_type="CAUSAL_LM",
                layers_to_transform=layers,
                target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
            ),
            callbacks=[Clock()],
        )
        trainer.train()
        total = time.perf_counter() - began
    return {"step_seconds": seconds[1:] or seconds, "total": total, "peak_mb": peak_mb()}


def three_billion() -> dict[str, Any]:
    """One LoRA DPO step of a Llama-3.2-3B-shaped model, random bf16 weights, last 14 layers, 2 x 512 tokens."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from conviction.core.context import RunContext
    from conviction.data.formats import training_data_from_rows
    from conviction.interventions.dpo import Dpo
    from conviction.models.engine.torch_engine import TorchEngine
    from conviction.models.hf import HFModel
    from conviction.training.guard import Guard
    from conviction.training.settings import Training, Weights

    config = LlamaConfig(
        vocab_size=128256, hidden_size=3072, intermediate_size=8192, num_hidden_layers=28, num_attention_heads=24,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=4096, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        module = LlamaForCausalLM(config).to(torch.bfloat16)
    module.to_empty(device="cpu")
    torch.manual_seed(0)
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.fill_(1.0) if "norm" in name else p.normal_(std=0.02)
    rotary = module.model.rotary_emb
    module.model.rotary_emb = type(rotary)(config)  # its buffers are not parameters
    module.requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(embedded())
    model = HFModel(id="llama-3b-shaped", engine=TorchEngine(module, tokenizer))
    loaded = peak_mb()
    text = shaped_pairs("seed", 4, tokenizer)
    cut = [tokenizer.decode(tokenizer(r["chosen"]).input_ids[:450]) for r in text]
    rows = [{"prompt": text[0]["prompt"], "chosen": cut[0], "rejected": cut[1]}]
    guard = Guard(sample_tokens=8)  # what it samples from random weights says nothing; it is in the time and memory
    began = time.perf_counter()
    dpo = Dpo(weights=Weights(num_layers=14), training=Training(batch_size=1, max_steps=1))
    outcome = dpo.apply(model, training_data_from_rows(rows, name="3b"), ctx=RunContext(guard=guard))
    return {
        "parameters": sum(p.numel() for p in module.parameters()),
        "loaded_mb": loaded,
        "peak_mb": peak_mb(),
        "tokens": outcome.training.tokens,
        "seconds": time.perf_counter() - began,
        "notes": outcome.notes,
    }


def worker(kind: str, *numbers: str) -> None:
    if kind == "3b":
        result = three_billion()
    else:
        shape, pairs, per_step, epochs, last = numbers[0], *map(int, numbers[1:])
        arguments = (shape, pairs, per_step, epochs, last or None)
        result = ours(*arguments) if kind == "ours" else trl(*arguments, best=kind == "trl-best")
    print("RESULT " + json.dumps(result))


def start(kind: str, *numbers: Any) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.training", "worker", kind, *map(str, numbers)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    line = next((x for x in done.stdout.splitlines() if x.startswith("RESULT ")), None)
    if line is None:
        raise RuntimeError(done.stderr[-3000:])
    result: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
    print(
        kind,
        *numbers,
        {k: v if not isinstance(v, list) else [round(x, 2) for x in v] for k, v in result.items()},
        flush=True,
    )
    return result


def steps(shape: str, targets: dict[str, float]) -> dict[str, Any]:
    """Alternating runs of three steps of four pairs (the seed's accumulation); the first step of each is not counted.

    The guard reads its instruments after each of our steps; the greedy samples
    that it writes at every ninth are counted with a ninth of their time.
    """
    from conviction.training.guard import Guard

    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "trl-best": [], "trl-default": []}
    for i in range(ROUNDS):
        for kind in ("ours", "trl-best", *(("trl-default",) if i == 0 else ())):
            runs[kind].append(start(kind, shape, *((12, 4) if kind != "trl-default" else (4, 2)), 1, 0))
    per_pair: dict[str, list[float]] = {"trl-default": [s / 2 for r in runs["trl-default"] for s in r["step_seconds"]]}
    per_pair["trl-best"] = [s / 4 for r in runs["trl-best"] for s in r["step_seconds"]]
    per_pair["ours"] = []
    for run in runs["ours"]:
        plain = statistics.median(run["step_seconds"])
        samples = max(0.0, statistics.median(run["sampling_step_seconds"]) - plain)
        per_pair["ours"].append((plain + samples / Guard().sample_every) / 4)
    seconds = {kind: statistics.median(found) for kind, found in per_pair.items()}
    peaks = {kind: max(r["peak_mb"] for r in found) for kind, found in runs.items()}
    return {
        "seconds_per_pair": seconds,
        "speedup_over_trl_best": seconds["trl-best"] / seconds["ours"],
        "speedup_by_round": [
            statistics.median(b["step_seconds"]) / 4 / ours
            for ours, b in zip(per_pair["ours"], runs["trl-best"], strict=True)
        ],
        "speedup_over_trl_default": seconds["trl-default"] / seconds["ours"],
        "peak_mb": peaks,
        "memory_share_of_trl_best": peaks["ours"] / peaks["trl-best"],
        "targets": targets,
        "runs": runs,
    }


def main(wanted: list[str] | None = None) -> None:
    path = Path(__file__).parent / "results" / "training.json"
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    result.pop("machine", None)
    for name, targets in (
        ("seed", {"speedup": 4.0, "memory_share": 0.30}),
        ("matched", {"speedup": 2.0, "memory_share": 0.45}),
    ):
        if not wanted or name in wanted:
            result[name] = steps(name, targets)
            save("training", result)
    if not wanted or "epochs" in wanted:
        found = {kind: start(kind, "seed", 16, 4, 3, 8) for kind in ("ours", "trl-best")}
        result["last_8_layers_3_epochs"] = {
            "seconds": {kind: r["total"] for kind, r in found.items()},
            "speedup": found["trl-best"]["total"] / found["ours"]["total"],
            "peak_mb": {kind: r["peak_mb"] for kind, r in found.items()},
            "targets": {"speedup": 5.0},
        }
        save("training", result)
    if not wanted or "3b" in wanted:
        result["llama_3b_shape"] = {**start("3b"), "target_mb": 12 * 1024}
        save("training", result)


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        worker(*sys.argv[2:])
    else:
        main(sys.argv[1:])
