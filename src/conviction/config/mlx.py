"""mlx-lm-lora's configs (version 5.10): its keys, its defaults, and what becomes of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conviction.config.file import UNCLIPPED, ConfigFile, Options, Result, Tool, read_length
from conviction.errors import nearest
from conviction.training.losses import LOSSES

DEFAULTS: dict[str, Any] = {
    "train_mode": "dpo",  # its own default is sft
    "dpo_cpo_loss_type": "sigmoid",
    "beta": 0.1,
    "delta": 50.0,
    "learning_rate": 1e-5,
    "batch_size": 4,
    "gradient_accumulation_steps": 1,
    "lr_schedule": {},
    "optimizer": "adam",
    "seed": 0,
    "train_type": "lora",
    "lora_parameters": {"rank": 8, "scale": 10.0, "dropout": 0.0},
}
RENAMED = {
    "grad_accumulation_steps": "gradient_accumulation",
    "max_seq_length": "max_length",
    "grad_checkpoint": "checkpointing",
    "fine_tune_type": "tune",
    "train_type": "tune",
}
FOREIGN = {name: foreign for name, loss in LOSSES.items() if (foreign := loss.foreign("mlx"))}
LOSS_TYPES = {foreign.name: name for name, foreign in FOREIGN.items() if foreign.key != "train_mode"}
MODES = {"dpo": ""} | {foreign.name: name for name, foreign in FOREIGN.items() if foreign.key == "train_mode"}
LOSS_KEYS = {key: ours for foreign in FOREIGN.values() for key, ours in foreign.parameters.items()}
SCHEDULES = {"cosine_decay": "cosine", "linear_schedule": "linear"}

_UNQUANTISED = "weights are trained unquantised here: remove it, and give --dtype bf16 if memory is short"
_REFUSALS: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("load_in_4bits load_in_6bits load_in_8bits load_in_mxfp4", (False,), _UNQUANTISED),
    ("qat_enable", (False,), _UNQUANTISED),
    ("reference_model_path", (), "the reference is the model as it was before training: remove it"),
    (
        "resume_adapter_file",
        (),
        "training starts from the model as it is: merge the adapter and give the merged folder as --model",
    ),
    ("hf_dataset", ({}, []), "give the data with --data, and remove it"),
)
IGNORED = """
train test test_batches val_batches steps_per_report steps_per_eval save_every adapter_path adapter_file config fuse
lm_studio_name wandb project_name mask_prompt efficient_long_context seq_step_size recurrence_chunk_size
clear_cache_threshold sft_loss_type reward_scaling judge judge_config group_size epsilon epsilon_high temperature
reward_weights reward_functions reward_functions_file list_reward_functions grpo_loss_type importance_sampling_level
lambda_mse_target tau_mse_target lambda_mse clip_epsilon_logits qat_bits qat_group_size qat_mode qat_start_step
qat_interval
"""


def _loss(file: ConfigFile) -> Result:
    """By its mode, or by the name that dpo's mode asks for."""
    mode = file.choice("train_mode", MODES, also="; sft is an intervention of its own")
    if mode:
        return {"loss": ("train_mode", mode)}, []
    name = file.choice("dpo_cpo_loss_type", LOSS_TYPES)
    foreign = FOREIGN[name]
    options: Options = {"loss": ("dpo_cpo_loss_type", name)}
    options |= {ours: (key, file.number(key)) for key, ours in foreign.parameters.items() if file.get(key) is not None}
    return options, [foreign.note] if foreign.note else []


def _schedule(file: ConfigFile) -> Result:
    spec = file.table("lr_schedule")
    if not spec:
        return {"schedule": ("lr_schedule", "constant"), "warmup": ("lr_schedule", 0.0)}, []
    kind = file.choice("lr_schedule", SCHEDULES, spec.get("name", ""))
    given = spec.get("arguments")
    if not isinstance(given, list) or not 2 + (kind == "linear") <= len(given) <= 3:
        raise file.fault("lr_schedule", "give arguments: [rate, steps, end] for cosine_decay, else [rate, end, steps]")
    rate, *rest = [file.number("lr_schedule", argument) for argument in given]
    steps, end = rest[::-1] if kind == "linear" else (*rest, 0.0)[:2]
    if end > rate:
        raise file.fault("lr_schedule", "the learning rate can only fall here; for a rise at the start give warmup")
    share = file.share("lr_schedule", file.number("lr_schedule", spec.get("warmup") or 0))
    options: Options = {"schedule": ("lr_schedule", kind), "learning_rate": ("lr_schedule", rate)}
    note = f"lr_schedule falls to {end:g} in {steps:g} steps; here the rate reaches 0 with the last step"
    return options | {"warmup": ("lr_schedule" if "warmup" in spec else "", share)}, [note]


def _optimizer(file: ConfigFile) -> Result:
    name = file.choice("optimizer", {"adam": "adam", "adamw": "adamw"})
    spec = file.table("optimizer_config").get(name) or {}
    if spec.keys() - {"weight_decay", "bias_correction"}:
        raise file.fault("optimizer_config", "betas 0.9 and 0.999 and eps 1e-8 are fixed here: keep only weight_decay")
    decay = file.number("optimizer_config", spec.get("weight_decay", 0.01 if name == "adamw" else 0.0))
    key = "optimizer_config" if "weight_decay" in spec else ""
    note = f"mlx does not clip gradients: max_grad_norm {UNCLIPPED:g} is out of reach"
    return {"weight_decay": (key, decay), "max_grad_norm": ("", UNCLIPPED)}, [note]


def _lora(file: ConfigFile) -> Result:
    if "full" in {file.given.get(key) for key in ("fine_tune_type", "train_type", "tune")}:
        notes = ["lora_parameters mean nothing where all weights are trained"]
        return {}, notes if "lora_parameters" in file.given else []
    spec = file.table("lora_parameters")
    known = ("rank", "scale", "dropout", "keys", "alpha")  # mlx leaves alpha unused
    for key in spec.keys() - set(known):
        raise file.fault("lora_parameters", f"{nearest(key, known)}it holds {', '.join(known)}", f"unknown '{key}'")
    options: Options = {}
    for name, value in (DEFAULTS["lora_parameters"] | spec).items():
        read = {"rank": file.whole, "scale": file.number, "dropout": file.number}.get(name)
        if read:
            options[name] = ("lora_parameters" if name in spec else "", read("lora_parameters", value))
    rank, scale = options["rank"][1], options["scale"][1]
    notes = [
        f"lora scale {scale:g} multiplies the update directly: the same as alpha = {scale * rank:g} at rank {rank} "
        "(PEFT's usual alpha / rank is 1 to 2)"
    ]
    if spec.get("keys") is not None:
        names = file.modules("lora_parameters", spec["keys"])
        options["target_modules"] = ("lora_parameters", names)
        notes.append(f"lora_parameters.keys: LoRA on every {', '.join(names or ('linear layer',))}")
    return options, notes


def _remarks(file: ConfigFile, options: Mapping[str, Any]) -> list[str]:
    mode, length = {"train_mode", "loss"} & file.given.keys(), {"epochs", "max_steps"} & options.keys()
    notes = [] if mode else ["no train_mode: read as dpo, though mlx-lm-lora's own default is sft"]
    notes += [] if length else ["neither iters nor epochs: mlx-lm-lora has no default for them, ours is used"]
    lost = [k for k in ("gradient_accumulation_steps", "dpo_cpo_loss_type") if file.get(k) not in {1, "sigmoid"}]
    notes += [f"mlx-lm-lora up to 5.10.2 overlooks {' and '.join(lost)} in a file; here it counts"] if lost else []
    if not (file.table("optimizer_config").get(str(file.get("optimizer"))) or {}).get("bias_correction"):
        notes.append("mlx's Adam has no bias correction: its steps are up to 6.6 times ours (step 12), 3.2 at step 100")
    return notes


def _unused(file: ConfigFile, key: str) -> bool:
    """Here alpha is XPO's, and a schedule brings its own learning rate."""
    return key == "alpha" or (key == "learning_rate" and "lr_schedule" in file.given)


MLX = Tool(
    name="mlx-lm-lora",
    defaults=DEFAULTS,
    renamed=RENAMED,
    converters={
        _loss: ("train_mode", "dpo_cpo_loss_type", *LOSS_KEYS),
        _schedule: ("lr_schedule",),
        _optimizer: ("optimizer", "optimizer_config"),
        _lora: ("lora_parameters",),
        read_length: ("iters",),
    },
    refused={key: (idle, hint) for keys, idle, hint in _REFUSALS for key in keys.split()},
    ignored=IGNORED.split(),
    remarks=_remarks,
    unused=_unused,
)
