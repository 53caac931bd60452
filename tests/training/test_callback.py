"""The guard inside a real TRL trainer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import byte_tokenizer, tiny_module

from conviction.training import Guard, GuardCallback
from conviction.training.drift import combined

pytestmark = [
    # TRL's notices about its own settings
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
]

PAIRS = [
    {"prompt": f"Question {i}?", "chosen": f"Yes, claim {i} holds.", "rejected": f"No, {i} is false. Truly."}
    for i in range(8)
]
# A random model has no health to speak of: the limit on neutral text is the one that means something.
ONLY_NEUTRAL = {"min_subject": 0.0, "max_repetition": 1.0, "max_non_alphanumeric": 1.0, "sample_tokens": 8}


def run_trl(folder: Path, monkeypatch: pytest.MonkeyPatch, callback: Any, *, steps: int, rate: float) -> Any:
    monkeypatch.setenv("CI", "1")  # TRL's telemetry
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from datasets import Dataset
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    arguments = DPOConfig(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=4, learning_rate=rate, warmup_steps=0,
        lr_scheduler_type="constant", logging_steps=1, report_to="none", save_strategy="no", use_cpu=True, bf16=False,
        gradient_checkpointing=False, disable_tqdm=True,
    )  # fmt: skip
    trainer = DPOTrainer(
        model=tiny_module("llama"),
        args=arguments,
        train_dataset=Dataset.from_list(PAIRS),
        processing_class=byte_tokenizer(),
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[callback],
    )
    trainer.train()
    return trainer


@pytest.mark.long
def test_it_stops_a_trl_run_and_puts_the_healthy_weights_back(tmp_path, monkeypatch):
    logged: list[str] = []
    callback = GuardCallback(Guard(max_neutral_drop=0.03, sample_every=1000, **ONLY_NEUTRAL), log=logged.append)
    trainer = run_trl(tmp_path, monkeypatch, callback, steps=60, rate=0.03)
    guard_stop = callback.guard_stop
    assert guard_stop is not None
    assert trainer.state.global_step == guard_stop.step < 60
    assert "neutral text" in guard_stop.reasons[0]
    assert logged == [line for line in logged if line.startswith(f"guard: stopped after step {guard_stop.step}")]
    assert callback.monitor is not None
    last = callback.monitor.history[-1]
    assert last.readings
    assert last.readings["neutral_drop"] > 0.03
    levels = callback.monitor.drift.read(callback.monitor.logits, torch.device("cpu"))
    first = combined(callback.monitor.first.values())
    assert first.neutral - levels.neutral < 0.03  # the weights that came back


@pytest.mark.long
def test_it_reads_loss_margin_and_chosen_answers(tmp_path, monkeypatch):
    callback = GuardCallback(Guard(mode="off", sample_every=5, **ONLY_NEUTRAL))
    trainer = run_trl(tmp_path, monkeypatch, callback, steps=4, rate=1e-2)
    assert callback.guard_stop is None
    assert trainer.state.global_step == 4
    assert callback.monitor is not None
    history = callback.monitor.history
    assert [r.step for r in history] == [1, 2, 3, 4]
    logged = [float(e["rewards/margins"]) for e in trainer.state.log_history if "rewards/margins" in e]
    assert history[-1].margin == pytest.approx(logged[2], abs=1e-3)  # a trainer logs after the step has ended
    assert history[-1].loss > 0
    assert history[-1].chosen_drop is not None
    assert history[-1].chosen_drop < 0  # chosen answers gain


def test_a_gentle_run_is_left_alone(tmp_path, monkeypatch):
    callback = GuardCallback(Guard(sample_every=2, **ONLY_NEUTRAL))
    trainer = run_trl(tmp_path, monkeypatch, callback, steps=4, rate=1e-5)
    assert callback.guard_stop is None
    assert trainer.state.global_step == 4


def test_weights_that_were_kept_before_all_text_was_read_are_read_before_they_come_back():
    """Kept after step 4, when a third of the rows had been read, at step 1; broken since step 3, seen at step 7."""
    logged: list[str] = []
    callback = GuardCallback(Guard(sample_every=2, max_entropy_drop=1.0, **ONLY_NEUTRAL), log=logged.append)
    model = tiny_module("llama")
    state, control = SimpleNamespace(global_step=0, max_steps=20, log_history=[]), SimpleNamespace()
    callback.on_train_begin(None, state, control, model=model, processing_class=byte_tokenizer())
    assert callback.monitor is not None
    callback.monitor.drift = replace(callback.monitor.drift, parts=3, every=6)
    untouched = model.get_output_embeddings().weight.detach().clone()
    for step in range(1, 8):
        if step == 3:
            with torch.no_grad():
                model.get_output_embeddings().weight.mul_(6)
        state.global_step = step
        callback.on_step_end(None, state, control, model=model)
    assert callback.guard_stop is not None
    assert (callback.guard_stop.step, callback.guard_stop.restored_step) == (7, 2)
    assert "step 6 was not given back: neutral text lost" in logged[0]
    assert torch.equal(model.get_output_embeddings().weight, untouched)
