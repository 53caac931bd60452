"""The keys of TRL's and mlx-lm-lora's configs, each with what becomes of it: tables for ``foreign``."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, get_args, get_origin

from conviction.core.options import list_fields
from conviction.training.settings import Training, Weights

__all__ = [
    "DEFAULTS",
    "IGNORED",
    "MLX",
    "OWN",
    "PLACES",
    "REFUSED",
    "RENAMED",
    "TRL",
    "UNCLIPPED",
    "refusal",
    "tool_of",
]

TRL, MLX = "TRL", "mlx-lm-lora"  # versions 1.16 and 5.10
UNCLIPPED = 1e9  # a norm that no gradient reaches: how "do not clip" is written here

DEFAULTS: dict[str, dict[str, Any]] = {
    TRL: {
        "loss_type": ["sigmoid"],
        "label_smoothing": 0.0,
        "beta": 0.1,
        "learning_rate": 1e-6,
        "num_train_epochs": 3,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "seed": 42,
        "use_peft": False,
        "lora_r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
        "disable_dropout": True,
    },
    MLX: {
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
    },
}
# foreign key → our field with the same meaning
RENAMED = {
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "gradient_accumulation",
    "grad_accumulation_steps": "gradient_accumulation",
    "grad_accumulation": "gradient_accumulation",
    "max_seq_length": "max_length",
    "grad_checkpoint": "checkpointing",
    "gradient_checkpointing": "checkpointing",
    "bf16": "precision",
    "fine_tune_type": "tune",
    "train_type": "tune",
    "rpo_alpha": "sft_weight",
}
LOSSES = {"sigmoid": "dpo", "hinge": "hinge", "ipo": "ipo", "robust": "robust", "sigmoid_norm": "dpo_norm"}
MLX_LOSSES = {"sigmoid": "dpo", "hinge": "hinge", "ipo": "ipo", "dpop": "dpop"}
SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant", "constant_with_warmup": "constant"}
MLX_SCHEDULES = {"cosine_decay": "cosine", "linear_schedule": "linear"}
PLACES = (("model", "model_name_or_path"), ("data", "dataset_name"))

_UNQUANTISED = "weights are trained unquantised here: remove it, and give --dtype bf16 if memory is short"
_REFERENCE = "the reference is the model as it was before training: remove it"
_START = "training starts from the model as it is: merge the adapter and give the merged folder as --model"
_OPTIMISER = "AdamW is used, with betas 0.9 and 0.999, eps 1e-8 and the plain schedules: remove it"
_PLAIN = "this variant of the loss is not offered: remove it, or take another loss (hypo, dpo_norm, dpop)"
_ADAMS = (
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_hf",
    "adamw_apex_fused",
    "adamw_torch_xla",
    "adamw_torch_npu_fused",
)
# keys, the values that have no effect, and what to do about any other
_REFUSALS: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    (
        "use_dora use_rslora",
        (False,),
        "plain LoRA is what there is: set it to false, and set lora_alpha as you need it",
    ),
    ("load_in_8bit load_in_4bit load_in_4bits load_in_6bits load_in_8bits load_in_mxfp4", (False,), _UNQUANTISED),
    ("qat_enable", (False,), _UNQUANTISED),
    ("fp16", (False,), "train in bf16 (bf16: true) or in fp32 (bf16: false)"),
    (
        "dtype torch_dtype",
        ("auto", "float32", "bfloat16", "torch.float32", "torch.bfloat16"),
        "use bfloat16 or float32",
    ),
    ("lora_modules_to_save lora_target_parameters", ([],), "LoRA is on linear layers only: use lora_target_modules"),
    ("lora_task_type", ("CAUSAL_LM",), "models of text are what is trained here: CAUSAL_LM"),
    ("reference_model_path ref_adapter_name model_adapter_name", (), _REFERENCE),
    ("sync_ref_model", (False,), _REFERENCE),
    ("reference_free", (False,), "for a loss without a reference write loss: simpo or loss: orpo"),
    ("resume_adapter_file", (), _START),
    ("resume_from_checkpoint", (False,), _START),
    ("model_revision", ("main",), "give the folder of that revision as --model, and remove it"),
    ("dataset_train_split", ("train",), "only the split train is read: give the data with --data, and remove it"),
    ("dataset_config", ("default",), "give the data with --data, and remove it"),
    ("hf_dataset datasets", ({}, []), "give the data with --data, and remove it"),
    ("use_weighting", (False,), _PLAIN),
    ("ld_alpha", (1.0,), _PLAIN),
    ("f_divergence_type", ("reverse_kl",), _PLAIN),
    ("neftune_noise_alpha", (0,), "noise on embeddings is not offered: remove it"),
    ("optim", (*_ADAMS, "adamw_anyprecision"), _OPTIMISER),
    ("adam_beta1", (0.9,), _OPTIMISER),
    ("adam_beta2", (0.999,), _OPTIMISER),
    ("adam_epsilon", (1e-8,), _OPTIMISER),
    ("optim_args optim_target_modules lr_scheduler_kwargs", ({}, ""), _OPTIMISER),
    ("train_sampling_strategy", ("random", "group_by_length"), "examples come in random order: use random"),
)
REFUSED = {key: (idle, hint) for keys, idle, hint in _REFUSALS for key in keys.split()}

_MLX_IDLE = """
train test test_batches val_batches steps_per_report steps_per_eval save_every adapter_path adapter_file config fuse
lm_studio_name wandb project_name mask_prompt efficient_long_context seq_step_size recurrence_chunk_size
clear_cache_threshold sft_loss_type reward_scaling judge judge_config group_size epsilon epsilon_high temperature
reward_weights reward_functions reward_functions_file list_reward_functions grpo_loss_type importance_sampling_level
lambda_mse_target tau_mse_target lambda_mse clip_epsilon_logits qat_bits qat_group_size qat_mode qat_start_step
qat_interval
"""
_TRL_IDLE = """
output_dir overwrite_output_dir run_name project trackio_space_id trackio_bucket_id trackio_static_space_id env
logging_dir logging_strategy logging_steps logging_first_step logging_nan_inf_filter log_level log_level_replica
log_on_each_node disable_tqdm include_num_input_tokens_seen include_tokens_per_second include_inputs_for_metrics
eval_strategy evaluation_strategy eval_steps eval_delay eval_on_start eval_do_concat_batches eval_accumulation_steps
eval_use_gather_object per_device_eval_batch_size prediction_loss_only include_for_metrics batch_eval_metrics do_train
do_eval do_predict metric_for_best_model greater_is_better load_best_model_at_end save_strategy save_steps
save_total_limit save_only_model save_on_each_node save_safetensors enable_jit_checkpoint push_to_hub hub_model_id
hub_token hub_private_repo hub_strategy hub_always_push hub_revision ignore_data_skip full_determinism data_seed
restore_callback_states_from_checkpoint average_tokens_across_devices bf16_full_eval fp16_full_eval tf32
activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing_kwargs torch_compile
torch_compile_backend torch_compile_mode use_liger_kernel use_liger_loss liger_kernel_config use_cache
torch_empty_cache_steps auto_find_batch_size use_cpu no_cuda use_mps_device accelerator_config parallelism_config
dataloader_drop_last dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers
dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order remove_unused_columns label_names
group_by_length length_column_name ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph
ddp_backend ddp_timeout fsdp fsdp_config deepspeed debug skip_memory_metrics local_rank label_smoothing_factor
model_init_kwargs ref_model_init_kwargs router_aux_loss_coef dataset_num_proc truncation_mode max_prompt_length
padding_free pad_to_multiple_of precompute_ref_log_probs precompute_ref_batch_size f_alpha_divergence_coef
discopop_tau activation_offloading ref_model_mixup_alpha ref_model_sync_steps pad_token label_pad_token_id
padding_value generate_during_eval is_encoder_decoder attn_implementation bnb_4bit_quant_type use_bnb_nested_quant
bnb_4bit_quant_storage dataset_test_split dataset_streaming streaming test_split_size ignore_bias_buffers
"""
_SHARED = {
    "trust_remote_code",
    "report_to",
    "max_completion_length",
    "gradient_accumulation_steps",
    "grad_accumulation",
}
_MLX_CONVERTED = """
train_mode dpo_cpo_loss_type delta iters lora_parameters lr_schedule optimizer optimizer_config fine_tune_type
train_type grad_accumulation_steps max_seq_length grad_checkpoint reference_model_path resume_adapter_file hf_dataset
load_in_4bits load_in_6bits load_in_8bits load_in_mxfp4 qat_enable
"""
_TRL_CONVERTED = """
model_name_or_path dataset_name loss_type loss_weights num_train_epochs lr_scheduler_type warmup_steps
warmup_ratio use_peft lora_r lora_alpha lora_dropout lora_target_modules disable_dropout
"""
IGNORED = {*_MLX_IDLE.split(), *_TRL_IDLE.split(), "trust_remote_code", "report_to", "max_completion_length"}
MLX_ONLY = {*_MLX_IDLE.split(), *_MLX_CONVERTED.split()}
TRL_ONLY = {*_TRL_IDLE.split(), *_TRL_CONVERTED.split(), *REFUSED, *RENAMED} - MLX_ONLY - _SHARED


def _kind(annotation: Any) -> type:
    kinds = [get_origin(kind) or kind for kind in get_args(annotation) or (annotation,)]
    return next((kind for kind in kinds if kind in {int, float, tuple}), str)


_PREFERENCE = ("beta", "label_smoothing", "gamma", "penalty", "sft_weight", "desirable_weight", "undesirable_weight")
OWN: dict[str, type] = {
    **{field.name: _kind(field.type) for settings in (Weights, Training) for field in list_fields(settings)},
    **dict.fromkeys(_PREFERENCE, float),
    "loss": str,
}
"""Our own names, and what they hold."""


def tool_of(keys: Collection[str]) -> str:
    """Whose config has these keys: who has more that the other lacks; '' where there are none."""
    trl, mlx = len(TRL_ONLY.intersection(keys)), len(MLX_ONLY.intersection(keys))
    return "" if not trl + mlx else TRL if trl >= mlx else MLX


def refusal(key: str, value: Any) -> str:
    """What to do about a value that cannot be had here; '' where the key does no harm."""
    idle, hint = REFUSED.get(key, ((value,), ""))
    return "" if any(value == one or _number(value) == _number(one) for one in idle) else hint


def _number(value: Any) -> Any:
    """YAML takes 1e-8 for text."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return value
