"""Configs of TRL and mlx-lm-lora say here what they say there, or are refused with a reason."""

from __future__ import annotations

import dataclasses
import json

import pytest

from conviction.config.foreign import IGNORED, OWN, PLACES, REFUSED, RULES, TOOLS, only_keys, read_config
from conviction.config.mlx import MLX
from conviction.config.others import OTHERS
from conviction.config.presets import PRESETS, find_preset
from conviction.config.trl import TRL
from conviction.core.options import build, flat
from conviction.errors import InputError
from conviction.training.settings import Training, Weights


@pytest.fixture
def read(tmp_path):
    def reader(text):
        path = tmp_path / "config.yaml"
        path.write_text(text, encoding="utf-8")
        return read_config(path)

    return reader


@pytest.fixture
def fault(read):
    def reader(text):
        with pytest.raises(InputError) as caught:
            read(text)
        return caught.value

    return reader


MLX_FILE = """
model: mlx-community/Llama-3.2-3B-Instruct
train: true
data: data/
train_mode: dpo
fine_tune_type: lora
num_layers: 14
iters: 1000
learning_rate: 1e-5   # text to YAML 1.1
grad_accumulation_steps: 4
max_seq_length: 2048
grad_checkpoint: true
lora_parameters: {keys: [self_attn.q_proj, self_attn.v_proj], rank: 8, scale: 10.0, dropout: 0.0}
steps_per_report: 10
adapter_path: adapters
beta: 0.1
"""


def test_a_file_of_mlx_lm_lora(read):
    config = read(MLX_FILE)
    assert (config.model, config.data) == ("mlx-community/Llama-3.2-3B-Instruct", "data/")
    assert config.options == {
        "loss": "dpo",
        "beta": 0.1,
        "tune": "lora",
        "rank": 8,
        "scale": 10.0,
        "dropout": 0.0,
        "target_modules": ("q_proj", "v_proj"),
        "num_layers": 14,
        "learning_rate": 1e-5,
        "batch_size": 4,
        "gradient_accumulation": 4,
        "max_steps": 250,
        "epochs": 250,
        "schedule": "constant",
        "warmup": 0.0,
        "weight_decay": 0.0,
        "max_grad_norm": 1e9,
        "seed": 0,
        "max_length": 2048,
        "checkpointing": "on",
    }
    notes = "\n".join(config.notes)
    assert "lora scale 10 multiplies the update directly: the same as alpha = 80 at rank 8" in notes
    assert "iters 1000 are batches: 250 steps" in notes
    assert "LoRA on every q_proj, v_proj" in notes
    assert "not in the file, so as mlx-lm-lora has it: loss dpo, batch_size 4, schedule constant" in notes
    assert "not needed here: train, steps_per_report, adapter_path" in notes
    assert "no bias correction" in notes
    assert "overlooks" not in notes


TRL_FILE = """
model_name_or_path: Qwen/Qwen2-0.5B-Instruct
dataset_name: trl-lib/ultrafeedback_binarized
learning_rate: 5.0e-6
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
max_steps: 1000
warmup_steps: 100
lr_scheduler_type: cosine
loss_type: [sigmoid, sft]
loss_weights: [0.8, 0.2]
use_peft: true
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_modules: [q_proj, v_proj]
bf16: true
gradient_checkpointing: false
max_grad_norm: 0
output_dir: out
report_to: wandb
logging_steps: 25
adam_epsilon: 1e-8
"""


def test_a_file_of_trl(read):
    config = read(TRL_FILE)
    assert (config.model, config.data) == ("Qwen/Qwen2-0.5B-Instruct", "trl-lib/ultrafeedback_binarized")
    assert config.options == {
        "loss": "dpo",
        "beta": 0.1,
        "sft_weight": pytest.approx(0.25),
        "tune": "lora",
        "rank": 32,
        "alpha": 16.0,
        "dropout": 0.0,
        "target_modules": ("q_proj", "v_proj"),
        "learning_rate": 5e-6,
        "batch_size": 2,
        "gradient_accumulation": 8,
        "max_steps": 1000,
        "epochs": 1000,
        "schedule": "cosine",
        "warmup": pytest.approx(0.1),
        "weight_decay": 0.0,
        "max_grad_norm": 1e9,
        "seed": 42,
        "precision": "bf16",
        "checkpointing": "off",
    }
    notes = "\n".join(config.notes)
    assert "loss_type sigmoid + sft: loss dpo with sft_weight 0.25, a ratio" in notes
    assert "loss_weights: the loss is not scaled by 0.8" in notes
    assert "warmup_steps 100 are a share of 0.1" in notes
    assert "max_steps decides, not the epochs" in notes
    assert "lora_dropout is 0 here" in notes
    assert "not in the file, so as TRL has it: dropout 0.0, beta 0.1, weight_decay 0.0, seed 42" in notes
    assert "not needed here: output_dir, report_to, logging_steps, adam_epsilon" in notes


@pytest.mark.parametrize(
    "text", [MLX_FILE, TRL_FILE, "output_dir: out", "train_mode: orpo\nepochs: 2\ntrain_type: full"]
)
def test_options_are_fields_and_pass_their_checks(read, text):
    options = read(text).options
    assert options.keys() <= OWN.keys()
    for settings in (Weights(), Training()):
        made = build(settings, {name: options[name] for name in flat(settings) if name in options})
        assert all(value == options.get(name, value) for name, value in flat(made).items())


def test_what_trl_leaves_out_has_trls_defaults(read):
    config = read("output_dir: out\nlora_target_modules: all-linear\nuse_peft: true\ndisable_dropout: false")
    wanted = {
        "learning_rate": 1e-6,
        "epochs": 3,
        "batch_size": 8,
        "rank": 16,
        "alpha": 32.0,
        "dropout": 0.05,
        "seed": 42,
    }
    assert wanted.items() <= config.options.items()
    assert config.options["target_modules"] is None
    full = read("num_train_epochs: 1")
    assert full.options["tune"] == "full"
    assert not {"rank", "alpha", "scale"} & full.options.keys()
    assert "tune full" in full.notes[0]


def test_the_reports_own_words_keep_our_defaults(read):
    config = read("beta: 0.05\nlearning_rate: 5e-6\ngrad_accumulation: 8\nnum_layers: 14")
    wanted = {"beta": 0.05, "learning_rate": 5e-6, "gradient_accumulation": 8, "num_layers": 14}
    assert config.options == wanted
    assert wanted.items() <= PRESETS["report-run2"].options.items()
    assert "our defaults" in config.notes[0]


def test_our_own_names_are_keys(read):
    config = read(
        "loss: hypo\ngamma: 0.5\nrank: 4\nscale: null\nmax_steps: 9\nepochs: 2\ncheckpointing: on\nmodel: m\n"
        "target_modules: [q_proj]\nwarmup: 0.2\nlabel_smoothing: 0.1\nprecision: bf16\nmax_grad_norm: 2"
    )
    assert config.options == {
        "loss": "hypo",
        "gamma": 0.5,
        "rank": 4,
        "max_steps": 9,
        "epochs": 2,
        "checkpointing": "on",
        "target_modules": ("q_proj",),
        "warmup": 0.2,
        "label_smoothing": 0.1,
        "precision": "bf16",
        "max_grad_norm": 2.0,
    }
    assert config.model == "m"


def test_our_names_go_before_a_tools_defaults(read):
    config = read("optimizer: adamw\niters: 10\nweight_decay: 0.1\nwarmup: 0.2\nrank: 4\nlora_parameters: {scale: 2}")
    assert {"weight_decay": 0.1, "warmup": 0.2, "rank": 4, "scale": 2.0}.items() <= config.options.items()
    config = read("output_dir: out\nloss: ipo\ntune: lora\nalpha: 8")
    assert {"loss": "ipo", "tune": "lora", "alpha": 8.0, "rank": 16}.items() <= config.options.items()


def test_a_mixed_file_is_read_as_its_greater_part_is(read):
    config = read("iters: 8\ntrain_mode: dpo\ngrad_accumulation_steps: 2\nper_device_train_batch_size: 3")
    assert {"max_steps": 4, "batch_size": 3, "learning_rate": 1e-5, "scale": 10.0}.items() <= config.options.items()


def test_adapter_configs_of_mlx_are_configs_too(tmp_path):
    path = tmp_path / "adapter_config.json"
    content = dict.fromkeys(IGNORED) | MLX.defaults | {"alpha": [1e-5], "iters": 100, "num_layers": -1}
    path.write_text(json.dumps(content, indent=4), encoding="utf-8")
    config = read_config(path)
    assert {"max_steps": 100, "num_layers": None, "scale": 10.0, "loss": "dpo"}.items() <= config.options.items()
    assert "alpha" not in config.options


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("train_mode: dpo\ndpo_cpo_loss_type: dpop\ndelta: 40", {"loss": "dpop", "penalty": 40.0}),
        ("train_mode: dpo\ndpo_cpo_loss_type: dpop", {"penalty": 50.0}),
        ("train_mode: orpo\nbeta: 0.2", {"loss": "orpo", "beta": 0.2, "schedule": "constant"}),
        ("train_type: full\nlora_parameters: {rank: 8, scale: 20.0}", {"tune": "full"}),
        ("optimizer: adamw", {"weight_decay": 0.01}),
        (
            "optimizer: adamw\noptimizer_config: {adamw: {weight_decay: 0.05, bias_correction: true}}",
            {"weight_decay": 0.05},
        ),
        (
            "iters: 100\nlr_schedule: {name: cosine_decay, warmup: 10, arguments: [2e-5, 90, 1e-7]}\nlearning_rate: 1",
            {"schedule": "cosine", "learning_rate": 2e-5, "warmup": 0.1},
        ),
        (
            "iters: 100\nlr_schedule: {name: linear_schedule, arguments: [1e-5, 0, 90]}",
            {"schedule": "linear", "warmup": 0.0},
        ),
        ("iters: 100\nepochs: 3\nbatch_size: 2", {"max_steps": 100, "epochs": 100}),
        ("train_mode: dpo\nepochs: 3", {"epochs": 3}),
        ("output_dir: out\nwarmup_ratio: 0.1", {"warmup": 0.1, "schedule": "linear"}),
        ("output_dir: out\nwarmup_steps: 0.03", {"warmup": 0.03}),
        ("output_dir: out\nlr_scheduler_type: constant\nwarmup_ratio: 0.1", {"warmup": 0.0, "schedule": "constant"}),
        ("output_dir: out\nlr_scheduler_type: constant_with_warmup\nwarmup_ratio: 0.1", {"warmup": 0.1}),
        ("output_dir: out\nmax_steps: -1", {"epochs": 3}),
        ("loss_type: sigmoid_norm\nbeta: 5", {"loss": "dpo_norm", "beta": 5.0}),
        ("loss_type: robust", {"loss": "robust", "label_smoothing": 0.0}),
        ("loss_type: robust\nlabel_smoothing: 0.1", {"label_smoothing": 0.1}),
        ("loss_type: sigmoid\nrpo_alpha: 0.5", {"loss": "dpo", "sft_weight": 0.5}),
        ("bf16: false\ndtype: float32", {"precision": "auto"}),
        ("use_peft: false\nlora_r: 8", {"tune": "full"}),
        ("lora_target_modules: q_proj\nuse_peft: true", {"target_modules": ("q_proj",)}),
    ],
)
def test_values_are_converted(read, text, wanted):
    assert wanted.items() <= read(text).options.items()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("loss_type: sigmoid\nlabel_smoothing: 0.1", "label_smoothing is left out"),
        ("output_dir: out\nlr_scheduler_type: constant\nwarmup_ratio: 0.1", "never warms up in TRL"),
        ("use_peft: true", "no lora_target_modules"),
        ("use_peft: false\nlora_r: 8", "lora_r: of no use"),
        ("max_length: 512\nloss_type: ipo", "longer examples are left out"),
        ("train_type: lora", "no train_mode"),
        ("train_mode: dpo", "neither iters nor epochs"),
        ("train_mode: dpo\ngradient_accumulation_steps: 8\ndpo_cpo_loss_type: ipo", "overlooks gradient_acc"),
        ("iters: 9\nepochs: 2", "epochs is not heeded"),
        ("train_mode: dpo\ndpo_cpo_loss_type: dpop", "delta is penalty"),
        ("train_type: full\nlora_parameters: {rank: 8}", "lora_parameters mean nothing"),
    ],
)
def test_what_differs_is_noted(read, text, message):
    assert [note for note in read(text).notes if message in note]


@pytest.mark.parametrize(
    ("text", "line", "wording", "hint"),
    [
        ("beta: 0.1\nlearning_rte: 1e-5", 2, "unknown key 'learning_rte'", "did you mean 'learning_rate'?"),
        ("per_device_train_batchsize: 1", 1, "unknown key", "did you mean 'per_device_train_batch_size'?"),
        ("true: 1", 1, "unknown key 'True'", "remove"),
        ("dpo_loss_type: sigmoid", 1, "unknown key 'dpo_loss_type'", "did you mean 'dpo_cpo_loss_type'?"),
        ("sync_ref_modell: true", 1, "unknown key 'sync_ref_modell'", "remove"),
        (
            "stage: dpo\nlora_rank: 8",
            1,
            "'stage' is a key of LlamaFactory, whose",
            "our keys: rank for lora_rank; leave",
        ),
        (
            "learning_rate: 1e-5\nrl: dpo\nrl_beta: 0.1",
            2,
            "'rl' is a key of axolotl, whose configs are not read",
            "learning_rate, loss for rl, beta for rl_beta; leave",
        ),
        ("dataset_mixer: {a/b: 1.0}", 1, "dataset_mixer is {'a/b': 1.0}", "--data"),
        ("fine_tune_type: dora", 1, "fine_tune_type: tune is 'dora'", "lora, full"),
        ("use_dora: true", 1, "use_dora is True", "plain LoRA"),
        ("load_in_4bit: true", 1, "load_in_4bit is True", "unquantised"),
        ("train_mode: dpo\nload_in_4bits: true", 2, "load_in_4bits is True", "unquantised"),
        ("train_mode: cpo", 1, "train_mode is 'cpo'", "there is dpo, orpo"),
        ("train_mode: sft", 1, "train_mode is 'sft'", "an intervention of its own"),
        ("loss_type: apo_zero", 1, "loss_type is 'apo_zero'", "sigmoid, hinge, ipo, robust, sigmoid_norm"),
        ("loss_type: [sigmoid, ipo]", 1, "loss_type is ['sigmoid', 'ipo']", "alone or with sft"),
        ("loss_type: sft", 1, "loss_type is 'sft'", "alone or with sft"),
        ("loss_type: [sigmoid, sft]\nloss_weights: [1.0]", 2, "loss_weights is [1.0]", "give 2 numbers"),
        ("loss_type: [sigmoid, sft]\nloss_weights: [0, 1]", 1, "loss_type", "weighted above 0"),
        ("dpo_cpo_loss_type: sigmod", 1, "dpo_cpo_loss_type is 'sigmod'", "did you mean 'sigmoid'?"),
        ("optim: sgd", 1, "optim is 'sgd'", "AdamW"),
        ("optimizer: muon", 1, "optimizer is 'muon'", "there is adam, adamw"),
        ("optimizer: adamw\noptimizer_config: {adamw: {betas: [0.9, 0.98]}}", 2, "optimizer_config is", "weight_decay"),
        ("optimizer_config: 3", 1, "optimizer_config is 3", "give a mapping"),
        ("adam_beta2: 0.95", 1, "adam_beta2 is 0.95", "AdamW is used"),
        ("lr_scheduler_type: polynomial", 1, "lr_scheduler_type is 'polynomial'", "constant_with_warmup"),
        ("lr_schedule: {name: step_decay, arguments: [1, 2, 3]}", 1, "lr_schedule is", "cosine_decay, linear_schedule"),
        ("lr_schedule: {name: cosine_decay}", 1, "lr_schedule is", "give arguments"),
        ("lr_schedule: {name: linear_schedule, arguments: [0, 1e-5, 100]}", 1, "lr_schedule is", "give warmup"),
        (
            "epochs: 2\nlr_schedule: {name: cosine_decay, warmup: 9, arguments: [1e-5, 9]}",
            2,
            "lr_schedule",
            "max_steps",
        ),
        ("loss_type: ipo\nwarmup_steps: 100", 2, "warmup_steps is 100", "write warmup: 0.1 instead"),
        ("max_steps: 50\nwarmup_steps: 100", 2, "warmup_steps: warmup is 2.0", "below 1"),
        ("num_train_epochs: 0.5", 1, "num_train_epochs is 0.5", "give a whole number, not 0.5"),
        ("iters: 3\ngrad_accumulation_steps: 4", 1, "iters is 3", "mlx counts batches"),
        ("iters: 3\nmax_steps: 3", 1, "iters is 3", "no max_steps"),
        ("lora_r: 8", 1, "lora_r is 8", "use_peft: true"),
        ("use_peft: true\nlora_r: 0", 2, "lora_r: rank is 0", "at least 1"),
        ("use_peft: maybe", 1, "use_peft is 'maybe'", "true or false"),
        ("use_peft: true\nlora_target_modules: '.*proj'", 2, "lora_target_modules is", "patterns"),
        (
            "train_mode: dpo\nlora_parameters: {keys: [model.layers.3.mlp.up_proj]}",
            2,
            "lora_parameters is",
            "num_layers",
        ),
        ("lora_parameters: {ranks: 8}", 1, "unknown 'ranks'", "did you mean 'rank'?"),
        ("lora_parameters: {rank: 8.5}", 1, "lora_parameters is", "give a whole number, not 8.5"),
        ("output_dir: out\ntarget_modules: [q_proj]", 1, "tune=full has no LoRA settings", "tune=lora"),
        ("fp16: true", 1, "fp16 is True", "bf16: true"),
        ("dtype: float16", 1, "dtype is 'float16'", "bfloat16"),
        ("resume_adapter_file: a.safetensors", 1, "resume_adapter_file is", "merge the adapter"),
        ("reference_model_path: other", 1, "reference_model_path is 'other'", "before training"),
        ("sync_ref_model: true", 1, "sync_ref_model is True", "before training"),
        ("datasets: [{path: a}, {path: b}]", 1, "datasets is", "--data"),
        ("dataset_train_split: train_prefs", 1, "dataset_train_split is 'train_prefs'", "--data"),
        ("model_revision: v2", 1, "model_revision is 'v2'", "--model"),
        ("learning_rate: fast", 1, "learning_rate is 'fast'", "give a number, not 'fast'"),
        ("beta: true", 1, "beta is True", "give a number"),
        ("learning_rate: .nan", 1, "learning_rate: learning_rate is nan", "above 0"),
        ("batch_size: [1]", 1, "batch_size is [1]", "give a number"),
        (
            "batch_size: 2\nper_device_train_batch_size: 4",
            2,
            "batch_size and per_device_train_batch_size",
            "one of the two",
        ),
        (
            "use_peft: true\nlora_r: 8\nrank: 4",
            3,
            "lora_r and rank contradict each other: rank 8 or 4",
            "one of the two",
        ),
        ("use_peft: false\ntune: lora", 2, "use_peft and tune contradict", "one of the two"),
        ("fine_tune_type: lora\ntrain_type: full", 2, "fine_tune_type and train_type", "one of the two"),
        ("model: a\nmodel_name_or_path: b", 2, "model and model_name_or_path", "one of the two"),
        ("num_train_epochs: 1\nepochs: 2", 1, "epochs and num_train_epochs", "one of the two"),
        ("beta: 0.1\nbeta: 0.2", 2, "'beta' is given twice", "once"),
        ("beta: [0.1", 1, "config.yaml", "YAML syntax"),
    ],
)
def test_faults_name_file_line_key_and_a_way_out(fault, text, line, wording, hint):
    error = fault(text)
    assert f"config.yaml:{line}: " in error.message
    assert wording in error.message
    assert hint in error.hint


@pytest.mark.parametrize("text", ["", "just text", "- a list", "{}", "# nothing"])
def test_a_file_without_keys_is_no_config(fault, text):
    assert "holds no mapping" in fault(text).message


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_config(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="a folder, not a file"):
        read_config(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"model: \xff")
    with pytest.raises(InputError, match="not UTF-8"):
        read_config(tmp_path / "latin.yaml")
    (tmp_path / "date.yaml").write_text("beta: 2024-13-45")
    with pytest.raises(InputError, match=r"date\.yaml"):
        read_config(tmp_path / "date.yaml")


def test_every_key_stands_in_one_table():
    tables = [set(RULES), set(REFUSED), IGNORED, set(PLACES[0]), set(PLACES[1])]
    assert len(set.union(*tables)) == sum(map(len, tables))
    assert OWN.keys() & set.union(*tables) == {"max_steps", "epochs", "label_smoothing"}  # the others mean the same
    assert not only_keys(TRL) & only_keys(MLX)
    assert set.union(*tables) >= only_keys(TRL) | only_keys(MLX)
    assert {rule for rule in RULES.values() if isinstance(rule, str)} <= OWN.keys()
    assert {key for tool in TOOLS for key in tool.defaults} <= RULES.keys() | OWN.keys()
    assert {f.name for kind in (Weights, Training) for f in dataclasses.fields(kind)} <= OWN.keys()


@pytest.fixture(scope="module")
def trl_defaults():
    """Field → default of all that ``trl dpo --config`` reads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
        trl = pytest.importorskip("trl")
        kinds = (trl.DPOConfig, trl.ModelConfig, trl.ScriptArguments, trl.DatasetMixtureConfig)
    return {
        field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        for kind in kinds
        for field in dataclasses.fields(kind)
    }


def test_trl_has_no_key_that_we_do_not_know(trl_defaults):
    assert len(trl_defaults) > 120
    known = {*OWN, *RULES, *REFUSED, *IGNORED, *PLACES[0], *PLACES[1]}
    assert trl_defaults.keys() <= known
    for key in trl_defaults:
        if key in REFUSED:
            assert REFUSED[key][1]


def test_our_list_of_trls_defaults_is_trls(trl_defaults):
    ours = TRL.defaults
    assert {key: trl_defaults[key] for key in ours} == ours


def test_a_file_with_all_of_trls_defaults_is_the_empty_file_of_trl(read, trl_defaults):
    text = "\n".join(f"{key}: {json.dumps(value)}" for key, value in trl_defaults.items())
    spelled = read(text).options
    short = read("output_dir: out").options
    spelled_anew = {"max_length": 1024, "checkpointing": "on"}  # of the device here, where a file does not say
    assert spelled == short | spelled_anew


def test_presets_hold_what_is_recorded_of_the_report():
    runs = [PRESETS[f"report-run{i}"].options for i in (1, 2, 3)]
    assert [r["beta"] for r in runs] == [0.1, 0.05, 0.01]
    assert [r["learning_rate"] for r in runs] == [1e-5, 5e-6, 1e-6]
    assert [r["gradient_accumulation"] for r in runs] == [4, 8, 8]
    assert [r["num_layers"] for r in runs] == [14, 14, 8]
    for name, preset in PRESETS.items():
        assert preset is find_preset(name)
        assert preset.name == name
        assert {"loss": "dpo", "tune": "lora"}.items() <= preset.options.items()
        assert preset.options.keys() <= OWN.keys()
        assert "stay at our defaults" in preset.meaning
        for settings in (Weights(), Training()):
            build(settings, {k: v for k, v in preset.options.items() if k in flat(settings)})


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(InputError, match="unknown preset 'report-run4'") as caught:
        find_preset("report-run4")
    assert "did you mean 'report-run" in caught.value.hint
    assert "report-run1, report-run2, report-run3" in caught.value.hint


def test_what_other_programs_keys_are_here_exists():
    for other in OTHERS:
        assert set(other.renamed.values()) <= {*OWN, "model"}
        assert not other.own & {*OWN, *RULES}


@pytest.mark.parametrize("key", ["dpo_loss_typ", "grpo_loss_typ", "base_modl", "report_two", "reward_scale"])
def test_no_hint_names_a_key_that_does_nothing(fault, key):
    hint = fault(f"{key}: 1").hint
    assert not any(f"'{name}'" in hint for name in (*IGNORED, *REFUSED))


def test_the_alignment_handbook_is_read(read):
    config = read(
        "use_peft: true\nuse_flash_attention_2: true\npreprocessing_num_workers: 12\noptim: paged_adamw_32bit"
    )
    assert "not needed here: use_flash_attention_2, preprocessing_num_workers, optim" in config.notes
