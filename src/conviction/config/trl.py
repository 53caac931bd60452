"""TRL's configs (version 1.16): its keys, its defaults, and what becomes of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conviction.config.file import UNCLIPPED, ConfigFile, Options, Result, Tool, read_length
from conviction.training.losses import LOSSES

DEFAULTS: dict[str, Any] = {
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
}
RENAMED = {
    "per_device_train_batch_size": "batch_size",
    "gradient_checkpointing": "checkpointing",
    "bf16": "precision",
    "rpo_alpha": "sft_weight",
}
FOREIGN = {name: foreign for name, loss in LOSSES.items() if (foreign := loss.foreign("trl"))}
LOSS_TYPES = {foreign.name: name for name, foreign in FOREIGN.items()}
OURS_ALONE = [name for name in LOSSES if name not in FOREIGN]
SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant", "constant_with_warmup": "constant"}
PEFT_KEYS = ("use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "disable_dropout")

_UNQUANTISED = "weights are trained unquantised here: remove it, and give --dtype bf16 if memory is short"
_REFERENCE = "the reference is the model as it was before training: remove it"
_OPTIMISER = "AdamW is used, with betas 0.9 and 0.999, eps 1e-8 and the plain schedules: remove it"
_PLAIN = "this variant of the loss is not offered: remove it, or take another loss of ours (loss: …)"
_FREE = " or ".join(f"loss: {name}" for name, loss in LOSSES.items() if not loss.needs_reference)
_ADAMS = (
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_hf",
    "adamw_apex_fused",
    "adamw_torch_xla",
    "adamw_torch_npu_fused",
    "adamw_anyprecision",
    "paged_adamw",
    "paged_adamw_32bit",
)
# keys, the values that have no effect, and what to do about any other
_REFUSALS: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    (
        "use_dora use_rslora",
        (False,),
        "plain LoRA is what there is: set it to false, and set lora_alpha as you need it",
    ),
    ("load_in_8bit load_in_4bit", (False,), _UNQUANTISED),
    ("fp16", (False,), "train in bf16 (bf16: true) or in fp32 (bf16: false)"),
    (
        "dtype torch_dtype",
        ("auto", "float32", "bfloat16", "torch.float32", "torch.bfloat16"),
        "use bfloat16 or float32",
    ),
    ("lora_modules_to_save lora_target_parameters", ([],), "LoRA is on linear layers only: use lora_target_modules"),
    ("lora_task_type", ("CAUSAL_LM",), "models of text are what is trained here: CAUSAL_LM"),
    ("ref_adapter_name model_adapter_name", (), _REFERENCE),
    ("sync_ref_model", (False,), _REFERENCE),
    ("reference_free", (False,), f"for a loss without a reference write {_FREE}"),
    (
        "resume_from_checkpoint",
        (False,),
        "training starts from the model as it is: merge the adapter and give the merged folder as --model",
    ),
    ("model_revision", ("main",), "give the folder of that revision as --model, and remove it"),
    ("dataset_train_split", ("train",), "only the split train is read: give the data with --data, and remove it"),
    ("dataset_config", ("default",), "give the data with --data, and remove it"),
    ("datasets dataset_mixer dataset_splits dataset_configs", ({}, []), "give the data with --data, and remove it"),
    ("use_weighting", (False,), _PLAIN),
    ("ld_alpha", (1.0,), _PLAIN),
    ("f_divergence_type", ("reverse_kl",), _PLAIN),
    ("neftune_noise_alpha", (0,), "noise on embeddings is not offered: remove it"),
    ("optim", _ADAMS, _OPTIMISER),
    ("adam_beta1", (0.9,), _OPTIMISER),
    ("adam_beta2", (0.999,), _OPTIMISER),
    ("adam_epsilon", (1e-8,), _OPTIMISER),
    ("optim_args optim_target_modules lr_scheduler_kwargs", ({}, ""), _OPTIMISER),
    ("train_sampling_strategy", ("random", "group_by_length"), "examples come in random order: use random"),
)
IGNORED = """
use_flash_attention_2 preprocessing_num_workers
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


def _loss(file: ConfigFile) -> Result:
    kinds = file.get("loss_type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    weights = file.get("loss_weights") or [1.0] * len(kinds)
    if not isinstance(weights, list) or len(weights) != len(kinds):
        raise file.fault("loss_weights", f"give {len(kinds)} numbers, one for each loss_type")
    pairs = {str(kind): file.number("loss_weights", weight) for kind, weight in zip(kinds, weights, strict=True)}
    sft = pairs.pop("sft", None)
    if len(pairs) != 1 or min(pairs.values()) <= 0:
        raise file.fault("loss_type", f"give one of {', '.join(LOSS_TYPES)}, alone or with sft, weighted above 0")
    ((kind, weight),) = pairs.items()
    also = f", each also with sft; in our words (loss: …) {', '.join(OURS_ALONE)} besides"
    options: Options = {"loss": ("loss_type", file.choice("loss_type", LOSS_TYPES, kind, also))}
    notes = [] if weight == 1 else [f"loss_weights: the loss is not scaled by {weight:g}, which AdamW would not feel"]
    if sft is not None:
        options["sft_weight"] = ("loss_type", sft / weight)
        notes.append(f"loss_type {kind} + sft: loss {options['loss'][1]} with sft_weight {sft / weight:g}, a ratio")
    return options, notes


def _smoothing(file: ConfigFile) -> Result:
    """TRL has label smoothing in some of its losses only, and passes over it in the others."""
    kinds = file.get("loss_type")
    owners = [foreign.name for foreign in FOREIGN.values() if "label_smoothing" in foreign.parameters]
    owned = any(str(kind) in owners for kind in (kinds if isinstance(kinds, list) else [kinds]))
    smoothing = file.number("label_smoothing")
    if file.tool is TRL and "loss" not in file.given and not owned:
        note = f"label_smoothing is left out: TRL 1.16 has it in {' and '.join(owners)} only; "
        return {}, [note + "-o label_smoothing=… sets it here"] if smoothing else []
    return {"label_smoothing": ("label_smoothing", smoothing)} if owned or "label_smoothing" in file.given else {}, []


def _schedule(file: ConfigFile) -> Result:
    kind, steps = file.choice("lr_scheduler_type", SCHEDULES), file.number("warmup_steps")
    key = "warmup_ratio" if "warmup_ratio" in file.given and not steps else "warmup_steps"
    share = file.share(key, steps) if steps >= 1 else file.number(key)
    notes = [f"warmup_steps {steps:g} are a share of {share:.3g} of the steps"] if steps >= 1 else []
    if share and file.get("lr_scheduler_type") == "constant":
        share = 0.0
        notes.append("lr_scheduler_type constant never warms up in TRL; constant_with_warmup does")
    return {"schedule": ("lr_scheduler_type", kind), "warmup": (key, share)}, notes


def _peft(file: ConfigFile) -> Result:
    given = [key for key in file.given if key.startswith("lora_") and key in PEFT_KEYS]
    if not (file.flag("use_peft") if "use_peft" in file.given else file.given.get("tune") == "lora"):
        if given and "use_peft" not in file.given:
            raise file.fault(given[0], "TRL would ignore it and train all weights: add use_peft: true, or remove it")
        idle = f"{', '.join(given)}: of no use where all weights are trained"
        return {"tune": ("use_peft", "full")}, [idle] if given else []
    options: Options = {"tune": ("use_peft", "lora"), "rank": ("lora_r", file.whole("lora_r"))}
    options |= {"alpha": ("lora_alpha", file.number("lora_alpha"))}
    if "lora_target_modules" in given:
        options["target_modules"] = ("lora_target_modules", file.modules(given[0], file.get("lora_target_modules")))
    if not file.flag("disable_dropout"):
        return options | {"dropout": ("lora_dropout", file.number("lora_dropout"))}, []
    note = "lora_dropout is 0 here: TRL's DPO turns dropout off, unless disable_dropout is false"
    return options | {"dropout": ("", 0.0)}, [note] if "lora_dropout" in given else []


def _remarks(_file: ConfigFile, options: Mapping[str, Any]) -> list[str]:
    if options["tune"] == "lora" and "target_modules" not in options:
        return ["no lora_target_modules: PEFT takes few (q_proj and v_proj in Llama), here all but the head"]
    return []


TRL = Tool(
    name="TRL",
    defaults=DEFAULTS,
    renamed=RENAMED,
    converters={
        _loss: ("loss_type", "loss_weights"),
        _smoothing: ("label_smoothing",),
        _schedule: ("lr_scheduler_type", "warmup_steps", "warmup_ratio"),
        _peft: PEFT_KEYS,
        read_length: ("num_train_epochs",),
    },
    readers={"max_grad_norm": lambda file, key: file.number(key) or UNCLIPPED},  # 0 means no clipping there
    refused={key: (idle, hint) for keys, idle, hint in _REFUSALS for key in keys.split()},
    ignored=IGNORED.split(),
    places=("model_name_or_path", "dataset_name"),
    remarks=_remarks,
)
