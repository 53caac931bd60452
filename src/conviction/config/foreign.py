"""Configs of TRL and of mlx-lm-lora, read as options of ours.

What a file leaves out has its own tool's defaults; a setting that we lack is refused, never dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from conviction.config import foreign_keys
from conviction.config.foreign_keys import DEFAULTS, IGNORED, MLX, OWN, PLACES, REFUSED, RENAMED, TRL, UNCLIPPED
from conviction.core.options import build, flat
from conviction.core.storage import user_path
from conviction.errors import InputError, nearest
from conviction.training.settings import Training, Weights

__all__ = ["RULES", "Imported", "read_config"]


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A foreign config in our words.

    options  our field names → values
    notes    one line for each thing that was converted, filled in or ignored, and why
    """

    options: dict[str, Any]
    model: str | None
    data: str | None
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _File:
    path: Path
    given: Mapping[str, Any]  # without nulls: both tools read them as "not given"
    lines: Mapping[str, int]

    @property
    def tool(self) -> str:
        return foreign_keys.tool_of(self.given)

    def get(self, key: str) -> Any:
        """What the file says, else the default of its tool, else that of the tool whose key it is."""
        return next((t[key] for t in (self.given, DEFAULTS.get(self.tool, {}), *DEFAULTS.values()) if key in t), None)

    def fault(self, key: str, hint: str, said: str = "") -> InputError:
        said = said or f"{key} is {self.get(key)!r}"
        return InputError(f"{self.path}:{self.lines.get(key, 1)}: {said}", hint=hint)

    def one_of(self, *keys: str) -> str:
        """Which of some keys of one meaning is given, if any."""
        given = [key for key in keys if key in self.given]
        if any(self.given[key] != self.given[given[0]] for key in given):
            raise self.fault(given[1], "keep one of the two", f"{given[0]} and {given[1]} contradict each other")
        return given[0] if given else ""

    def number(self, key: str, value: Any = None) -> float:
        """YAML takes 1e-5 for text; both tools read it as a number."""
        value = self.get(key) if value is None else value
        try:
            return float("" if isinstance(value, bool) else value)
        except (TypeError, ValueError, OverflowError):
            raise self.fault(key, f"give a number, not {value!r}") from None

    def whole(self, key: str, value: Any = None) -> int:
        number = self.number(key, value)
        if not number.is_integer():
            raise self.fault(key, f"give a whole number, not {number:g}")
        return int(number)

    def flag(self, key: str) -> bool:
        if not isinstance(self.get(key), bool):
            raise self.fault(key, "give true or false")
        return bool(self.get(key))

    def choice(self, key: str, table: Mapping[str, str], value: Any = None, also: str = "") -> str:
        word = str(self.get(key) if value is None else value)
        if word not in table:
            raise self.fault(key, f"{nearest(word, table)}there is {', '.join(table)}{also}")
        return table[word]

    def table(self, key: str) -> dict[str, Any]:
        if not isinstance(self.get(key) or {}, dict):
            raise self.fault(key, "give a mapping")
        return dict(self.get(key) or {})

    def share(self, key: str, steps: float) -> float:
        if steps and not _steps(self):
            raise self.fault(key, "warm-up is a share of all steps here: add max_steps, or write warmup: 0.1 instead")
        return steps / _steps(self) if steps else 0.0


Options = dict[str, tuple[str, Any]]  # our name → (the key it came by, value)
Found = tuple[Options, list[str]]  # and notes
Converter = Callable[[_File], Found]


def read_config(path: Path) -> Imported:
    """Read a flat YAML or JSON file in the key names of TRL, of mlx-lm-lora, or our own.

    Raises InputError, naming file, line and key: an unknown key, a value that cannot be had, two that disagree.
    """
    file = _load(user_path(path))
    known = [*OWN, *RULES, *REFUSED, *IGNORED, *PLACES[0], *PLACES[1]]
    for key, value in file.given.items():
        if key not in known:
            raise file.fault(key, f"{nearest(key, known)}remove what is not needed", f"unknown key '{key}'")
        if hint := foreign_keys.refusal(key, value):
            raise file.fault(key, hint)
    found, notes = _convert(file)
    options = {name: value for name, (_, value) in found.items()}
    _check(file, found, options)
    notes += _remarks(file, found, options)
    idle = [key for key in file.given if key in IGNORED or key in REFUSED or _unused(file, key)]
    notes += [f"not needed here: {', '.join(idle)}"] if idle else []
    model, data = (file.given.get(file.one_of(*keys)) for keys in PLACES)
    return Imported(options=options, model=model and str(model), data=data and str(data), notes=tuple(notes))


def _load(path: Path) -> _File:
    try:
        text = path.read_text(encoding="utf-8")
        node, values = yaml.compose(text, Loader=yaml.SafeLoader), yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.start})", hint="save the file as UTF-8") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", hint="check the path of the config") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise InputError(f"{path}{line}: {getattr(error, 'problem', error)}", hint="fix the YAML syntax") from error
    if not isinstance(node, yaml.MappingNode) or not values:
        raise InputError(f"{path}: holds no mapping", hint="write one 'key: value' a line, such as beta: 0.1")
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if str(key.value) in lines:
            raise InputError(f"{path}:{key.start_mark.line + 1}: '{key.value}' is given twice", hint="give it once")
        lines[str(key.value)] = key.start_mark.line + 1
    return _File(path=path, given={str(k): v for k, v in values.items() if v is not None}, lines=lines)


def _convert(file: _File) -> Found:
    """All rules, those of given keys first: a default yields to whatever the file says."""
    options: Options = {}
    notes: list[str] = []
    done: list[Converter] = []
    for key in {**file.given, **DEFAULTS.get(file.tool, {})}:
        rule = RULES.get(key, key if key in OWN else None)
        if rule is None or rule in done or _unused(file, key):
            continue
        found: Options = {rule: (key, _value(file, key, rule))} if isinstance(rule, str) else {}
        if not isinstance(rule, str):
            done.append(rule)
            found, said = rule(file)
            notes += said
        for name, (origin, value) in found.items():
            old, before = options.setdefault(name, (origin, value))
            if origin != old and value != before and {origin, old} <= file.given.keys():
                words = f"{old} and {origin} contradict each other: {name} {before} or {value}"
                raise file.fault(origin, "keep one of the two", words)
            if old not in file.given and origin in file.given:
                options[name] = (origin, value)
    return options, notes


def _unused(file: _File, key: str) -> bool:
    """To mlx-lm-lora, alpha is XPO's, and a schedule brings its own learning rate."""
    return file.tool == MLX and (key == "alpha" or (key == "learning_rate" and "lr_schedule" in file.given))


def _value(file: _File, key: str, name: str) -> Any:
    """The value of one of our fields, whatever it is called in the file."""
    value = file.get(key)
    if name == "target_modules":
        return _modules(file, key, value)
    if isinstance(value, bool) and name in {"checkpointing", "precision"}:
        return {"checkpointing": ("off", "on"), "precision": ("auto", "bf16")}[name][value]
    if name == "num_layers":
        return max(file.whole(key), 0) or None  # mlx: 0 and -1 mean all
    if name == "max_grad_norm" and file.tool == TRL:
        return file.number(key) or UNCLIPPED  # 0 means no clipping there
    return file.whole(key) if OWN[name] is int else file.number(key) if OWN[name] is float else str(value)


def _check(file: _File, found: Options, options: Mapping[str, Any]) -> None:
    """Ranges and choices, told with file, line and key."""
    for settings in (Weights(), Training()):
        try:
            build(settings, {name: options[name] for name in flat(settings) if name in options})
        except InputError as error:
            key = found.get(error.message.partition(" ")[0], found.get("tune", ("", None)))[0]
            raise file.fault(key, error.hint, f"{key}: {error.message}") from error


def _remarks(file: _File, found: Options, options: Mapping[str, Any]) -> list[str]:
    """What the tool's defaults fill in, and what differs from it though no key says so."""
    if not file.tool:
        return [f"no key tells {TRL} from {MLX}: what the file leaves out keeps our defaults"]
    filled = [f"{name} {value}" for name, (key, value) in found.items() if key not in file.given]
    notes = [f"not in the file, so as {file.tool} has it: {', '.join(filled)}"] if filled else []
    if options.get("max_length"):
        notes.append(f"max_length {options['max_length']}: longer examples are left out and reported, not cut")
    if file.tool == TRL:
        if options["tune"] == "lora" and "target_modules" not in options:
            notes.append("no lora_target_modules: PEFT takes few (q_proj and v_proj in Llama), here all but the head")
        return notes
    mode, length = {"train_mode", "loss"} & file.given.keys(), {"epochs", "max_steps"} & options.keys()
    notes += [] if mode else ["no train_mode: read as dpo, though mlx-lm-lora's own default is sft"]
    notes += [] if length else ["neither iters nor epochs: mlx-lm-lora has no default for them, ours is used"]
    lost = [k for k in ("gradient_accumulation_steps", "dpo_cpo_loss_type") if file.get(k) not in {1, "sigmoid"}]
    notes += [f"mlx-lm-lora up to 5.10.2 overlooks {' and '.join(lost)} in a file; here it counts"] if lost else []
    if not (file.table("optimizer_config").get(str(file.get("optimizer"))) or {}).get("bias_correction"):
        notes.append("mlx's Adam has no bias correction: its steps are up to 6.6 times ours (step 12), 3.2 at step 100")
    return notes


def _steps(file: _File) -> int:
    """Optimiser steps that the file asks for, 0 where it does not say; mlx counts batches."""
    if "iters" not in file.given:
        return max(file.whole("max_steps"), 0) if "max_steps" in file.given else 0
    key = file.one_of(*(key for key in (*OWN, *RULES) if RULES.get(key, key) == "gradient_accumulation"))
    steps = file.whole("iters") // max(file.whole(key) if key else 1, 1)
    if steps < 1 or "max_steps" in file.given:
        raise file.fault("iters", "mlx counts batches: give as many as make a step, or more, and no max_steps")
    return steps


def _length(file: _File) -> Found:
    steps, given = _steps(file), file.given.keys()
    if "iters" in given:
        said = f"iters {file.get('iters')} are batches: {steps} steps, however often that goes through the data"
        said += "; epochs is not heeded, as in mlx-lm-lora" if "epochs" in given else ""
        return {"max_steps": ("iters", steps), "epochs": ("iters", steps)}, [said]
    if steps and (file.tool == TRL or "num_train_epochs" in given) and "epochs" not in given:
        return dict.fromkeys(("max_steps", "epochs"), ("max_steps", steps)), ["max_steps decides, not the epochs"]
    found: Options = {"max_steps": ("max_steps", steps)} if steps else {}
    key = file.one_of("epochs", "num_train_epochs") or ("num_train_epochs" if file.tool == TRL else "")
    return found | ({"epochs": (key, file.whole(key))} if key else {}), []


def _schedule(file: _File) -> Found:
    kind, steps = file.choice("lr_scheduler_type", foreign_keys.SCHEDULES), file.number("warmup_steps")
    key = "warmup_ratio" if "warmup_ratio" in file.given and not steps else "warmup_steps"
    share = file.share(key, steps) if steps >= 1 else file.number(key)
    notes = [f"warmup_steps {steps:g} are a share of {share:.3g} of the steps"] if steps >= 1 else []
    if share and file.get("lr_scheduler_type") == "constant":
        share = 0.0
        notes.append("lr_scheduler_type constant never warms up in TRL; constant_with_warmup does")
    return {"schedule": ("lr_scheduler_type", kind), "warmup": (key, share)}, notes


def _mlx_schedule(file: _File) -> Found:
    spec = file.table("lr_schedule")
    if not spec:
        return {"schedule": ("lr_schedule", "constant"), "warmup": ("lr_schedule", 0.0)}, []
    kind = file.choice("lr_schedule", foreign_keys.MLX_SCHEDULES, spec.get("name", ""))
    given = spec.get("arguments")
    if not isinstance(given, list) or not 2 + (kind == "linear") <= len(given) <= 3:
        raise file.fault("lr_schedule", "give arguments: [rate, steps, end] for cosine_decay, else [rate, end, steps]")
    rate, *rest = [file.number("lr_schedule", argument) for argument in given]
    steps, end = rest[::-1] if kind == "linear" else (*rest, 0.0)[:2]
    if end > rate:
        raise file.fault("lr_schedule", "the learning rate can only fall here; for a rise at the start give warmup")
    share = file.share("lr_schedule", file.number("lr_schedule", spec.get("warmup") or 0))
    found: Options = {"schedule": ("lr_schedule", kind), "learning_rate": ("lr_schedule", rate)}
    said = f"lr_schedule falls to {end:g} in {steps:g} steps; here the rate reaches 0 with the last step"
    return found | {"warmup": ("lr_schedule" if "warmup" in spec else "", share)}, [said]


def _optimizer(file: _File) -> Found:
    name = file.choice("optimizer", {"adam": "adam", "adamw": "adamw"})
    spec = file.table("optimizer_config").get(name) or {}
    if spec.keys() - {"weight_decay", "bias_correction"}:
        raise file.fault("optimizer_config", "betas 0.9 and 0.999 and eps 1e-8 are fixed here: keep only weight_decay")
    decay = file.number("optimizer_config", spec.get("weight_decay", 0.01 if name == "adamw" else 0.0))
    key = "optimizer_config" if "weight_decay" in spec else ""
    said = f"mlx does not clip gradients: max_grad_norm {UNCLIPPED:g} is out of reach"
    return {"weight_decay": (key, decay), "max_grad_norm": ("", UNCLIPPED)}, [said]


def _mlx_lora(file: _File) -> Found:
    if "full" in {file.given.get(key) for key in ("fine_tune_type", "train_type", "tune")}:
        said = ["lora_parameters mean nothing where all weights are trained"]
        return {}, said if "lora_parameters" in file.given else []
    spec, known = (
        file.table("lora_parameters"),
        ("rank", "scale", "dropout", "keys", "alpha"),
    )  # mlx leaves alpha unused
    for key in spec.keys() - set(known):
        raise file.fault("lora_parameters", f"{nearest(key, known)}it holds {', '.join(known)}", f"unknown '{key}'")
    found: Options = {}
    for name, value in (DEFAULTS[MLX]["lora_parameters"] | spec).items():
        read = {"rank": file.whole, "scale": file.number, "dropout": file.number}.get(name)
        if read:
            found[name] = ("lora_parameters" if name in spec else "", read("lora_parameters", value))
    rank, scale = found["rank"][1], found["scale"][1]
    notes = [
        f"lora scale {scale:g} multiplies the update directly: the same as alpha = {scale * rank:g} at rank {rank} "
        "(PEFT's usual alpha / rank is 1 to 2)"
    ]
    if spec.get("keys") is not None:
        names = _modules(file, "lora_parameters", spec["keys"])
        found["target_modules"] = ("lora_parameters", names)
        notes.append(f"lora_parameters.keys: LoRA on every {', '.join(names or ('linear layer',))}")
    return found, notes


def _peft(file: _File) -> Found:
    given = [key for key in file.given if key.startswith("lora_") and RULES.get(key) is _peft]
    if not (file.flag("use_peft") if "use_peft" in file.given else file.given.get("tune") == "lora"):
        if given and "use_peft" not in file.given:
            raise file.fault(given[0], "TRL would ignore it and train all weights: add use_peft: true, or remove it")
        idle = f"{', '.join(given)}: of no use where all weights are trained"
        return {"tune": ("use_peft", "full")}, [idle] if given else []
    found: Options = {"tune": ("use_peft", "lora"), "rank": ("lora_r", file.whole("lora_r"))}
    found |= {"alpha": ("lora_alpha", file.number("lora_alpha"))}
    if "lora_target_modules" in given:
        found["target_modules"] = ("lora_target_modules", _modules(file, given[0], file.get("lora_target_modules")))
    if not file.flag("disable_dropout"):
        return found | {"dropout": ("lora_dropout", file.number("lora_dropout"))}, []
    said = "lora_dropout is 0 here: TRL's DPO turns dropout off, unless disable_dropout is false"
    return found | {"dropout": ("", 0.0)}, [said] if "lora_dropout" in given else []


def _modules(file: _File, key: str, value: Any) -> tuple[str, ...] | None:
    """Names of linear layers; of a path such as self_attn.q_proj, the last part."""
    names = value.split(",") if isinstance(value, str) else value
    if names == ["all-linear"]:
        return None
    if not isinstance(names, list) or not names or any(set(str(name)) & set("*\\()[]|^$+?") for name in names):
        raise file.fault(key, "give a list of names such as [q_proj, v_proj]; patterns are not understood")
    paths = [str(name).strip().split(".") for name in names]
    if any(part.isdigit() for path in paths for part in path):
        raise file.fault(key, "single layers cannot be chosen: num_layers takes the last ones")
    return tuple(dict.fromkeys(path[-1] for path in paths))


def _trl_loss(file: _File) -> Found:
    kinds = file.get("loss_type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    weights = file.get("loss_weights") or [1.0] * len(kinds)
    if not isinstance(weights, list) or len(weights) != len(kinds):
        raise file.fault("loss_weights", f"give {len(kinds)} numbers, one for each loss_type")
    pairs = {str(kind): file.number("loss_weights", weight) for kind, weight in zip(kinds, weights, strict=True)}
    sft = pairs.pop("sft", None)
    if len(pairs) != 1 or min(pairs.values()) <= 0:
        raise file.fault(
            "loss_type", f"give one of {', '.join(foreign_keys.LOSSES)}, alone or with sft, weighted above 0"
        )
    ((kind, weight),) = pairs.items()
    also = ", each also with sft; in our words (loss: …) simpo, orpo, kto, dpop and hypo besides"
    found: Options = {"loss": ("loss_type", file.choice("loss_type", foreign_keys.LOSSES, kind, also))}
    notes = [] if weight == 1 else [f"loss_weights: the loss is not scaled by {weight:g}, which AdamW would not feel"]
    if sft is not None:
        found["sft_weight"] = ("loss_type", sft / weight)
        notes.append(f"loss_type {kind} + sft: loss {found['loss'][1]} with sft_weight {sft / weight:g}, a ratio")
    return found, notes


def _smoothing(file: _File) -> Found:
    robust, smoothing = "robust" in str(file.get("loss_type")), file.number("label_smoothing")
    if file.tool == TRL and "loss" not in file.given and not robust:
        said = "label_smoothing is left out: TRL 1.16 has it in robust only; -o label_smoothing=… sets it here"
        return {}, [said] if smoothing else []
    return {"label_smoothing": ("label_smoothing", smoothing)} if robust or "label_smoothing" in file.given else {}, []


def _mlx_loss(file: _File) -> Found:
    mode = file.choice("train_mode", {"dpo": "dpo", "orpo": "orpo"}, also="; sft is an intervention of its own")
    if mode == "orpo":
        return {"loss": ("train_mode", "orpo")}, []
    found: Options = {"loss": ("dpo_cpo_loss_type", file.choice("dpo_cpo_loss_type", foreign_keys.MLX_LOSSES))}
    if found["loss"][1] != "dpop":
        return found, []
    said = "delta is penalty here, inside the log-sigmoid as in the paper (2402.13228); mlx-lm-lora has it outside"
    return found | {"penalty": ("delta", file.number("delta"))}, [said]


_CONVERTERS: dict[Converter, str] = {
    _length: "iters num_train_epochs epochs max_steps",
    _trl_loss: "loss_type loss_weights",
    _smoothing: "label_smoothing",
    _mlx_loss: "train_mode dpo_cpo_loss_type delta",
    _schedule: "lr_scheduler_type warmup_steps warmup_ratio",
    _mlx_schedule: "lr_schedule",
    _optimizer: "optimizer optimizer_config",
    _peft: "use_peft lora_r lora_alpha lora_dropout lora_target_modules disable_dropout",
    _mlx_lora: "lora_parameters",
}
RULES: dict[str, str | Converter] = {
    **RENAMED,
    **{key: converter for converter, keys in _CONVERTERS.items() for key in keys.split()},
}
