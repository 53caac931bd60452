"""Programs whose configs are not read, so that their keys are told as theirs: which keys to write here instead."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

__all__ = ["OTHERS", "Other", "other_program"]


@dataclass(frozen=True)
class Other:
    """name: as a user knows it; own: keys that only it has; renamed: its keys → ours of the same meaning."""

    name: str
    own: frozenset[str]
    renamed: Mapping[str, str]

    def advice(self, given: Collection[str]) -> str:
        """What to write in place of its file."""
        ours = {key: self.renamed[key] for key in given if key in self.renamed} or {"beta": "beta"}
        keys = [name if name == key else f"{name} for {key}" for key, name in ours.items()]
        return f"write a file in our keys: {', '.join(keys)}; leave the others out"


_LLAMA = """
stage finetuning_type pref_beta pref_loss pref_ftx cutoff_len lora_rank lora_target template dpo_label_smoothing
simpo_gamma ref_model overwrite_cache dataset_dir freeze_trainable_layers additional_target quantization_bit
"""
_AXOLOTL = """
base_model rl rl_beta adapter sequence_len micro_batch_size num_epochs lora_target_linear model_type tokenizer_type
chat_template sample_packing pad_to_sequence_len val_set_size dataset_prepared_path flash_attention lr_scheduler
dpo_use_weighting rpo_alpha_weight
"""
_COMMON = {"learning_rate": "learning_rate", "gradient_accumulation_steps": "gradient_accumulation"}
OTHERS = (
    Other(
        "LlamaFactory",
        frozenset(_LLAMA.split()),
        {
            "model_name_or_path": "model",
            "finetuning_type": "tune",
            "lora_rank": "rank",
            "lora_alpha": "alpha",
            "lora_dropout": "dropout",
            "lora_target": "target_modules",
            "pref_beta": "beta",
            "pref_loss": "loss",
            "pref_ftx": "sft_weight",
            "dpo_label_smoothing": "label_smoothing",
            "cutoff_len": "max_length",
            "per_device_train_batch_size": "batch_size",
            "num_train_epochs": "epochs",
            "lr_scheduler_type": "schedule",
            "warmup_ratio": "warmup",
            **_COMMON,
        },
    ),
    Other(
        "axolotl",
        frozenset(_AXOLOTL.split()),
        {
            "base_model": "model",
            "adapter": "tune",
            "lora_r": "rank",
            "lora_alpha": "alpha",
            "lora_dropout": "dropout",
            "lora_target_modules": "target_modules",
            "rl": "loss",
            "rl_beta": "beta",
            "dpo_beta": "beta",
            "sequence_len": "max_length",
            "micro_batch_size": "batch_size",
            "num_epochs": "epochs",
            "lr_scheduler": "schedule",
            "warmup_ratio": "warmup",
            **_COMMON,
        },
    ),
)


def other_program(given: Collection[str], known: Collection[str]) -> tuple[str, Other] | None:
    """The first key that is another program's own, and that program; None: there is none."""
    return next(((key, one) for key in given for one in OTHERS if key in one.own and key not in known), None)
