"""Configs of other tools, read as options of ours.

What a file leaves out has its own tool's defaults; a setting that we lack is refused, never dropped.
A further tool is one file that ends in a ``Tool``, and its place in ``TOOLS``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

from conviction.config.file import ConfigFile, Converter, Options, Result, Tool, read_length
from conviction.config.mlx import MLX
from conviction.config.others import other_program
from conviction.config.trl import TRL
from conviction.core.gate_yaml import read_yaml
from conviction.core.options import build, flat, list_fields
from conviction.core.storage import user_path
from conviction.errors import InputError, nearest
from conviction.interventions.dpo import Dpo
from conviction.training.settings import Training, Weights

TOOLS = (TRL, MLX)
PLACES = (("model", "model_name_or_path"), ("data", "dataset_name"))
_SHARED_IGNORED = ("trust_remote_code", "report_to", "max_completion_length")
_SHARED_RENAMED = {"gradient_accumulation_steps": "gradient_accumulation", "grad_accumulation": "gradient_accumulation"}


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


def read_config(path: Path) -> Imported:
    """Read a flat YAML or JSON file in the key names of TRL, of mlx-lm-lora, or our own.

    Raises InputError, naming file, line and key: an unknown key, a value that cannot be had, two that disagree.
    """
    file = _load(user_path(path))
    known = [*OWN, *RULES, *REFUSED, *IGNORED, *PLACES[0], *PLACES[1]]
    if (foreign := other_program(file.given, known)) is not None:
        key, other = foreign
        raise file.fault(key, other.advice(file.given), f"'{key}' is a key of {other.name}, whose configs are not read")
    for key, value in file.given.items():
        if key not in known:
            alive = nearest(key, [key for key in known if key not in REFUSED and key not in IGNORED])
            raise file.fault(key, f"{alive}remove what is not needed", f"unknown key '{key}'")
        if hint := _refusal(key, value):
            raise file.fault(key, hint)
    converted, notes = _convert(file)
    options = {name: value for name, (_, value) in converted.items()}
    _check(file, converted, options)
    notes += _remarks(file, converted, options)
    idle = [key for key in file.given if key in IGNORED or key in REFUSED or _is_unused(file, key)]
    notes += [f"not needed here: {', '.join(idle)}"] if idle else []
    model, data = (file.given.get(file.one_of(*keys)) for keys in PLACES)
    return Imported(options=options, model=model and str(model), data=data and str(data), notes=tuple(notes))


def _load(path: Path) -> ConfigFile:
    node, values = read_yaml(path, InputError, hint="check the path of the config")
    if not isinstance(values, dict) or not values:
        raise InputError(f"{path}: holds no mapping", hint="write one 'key: value' a line, such as beta: 0.1")
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if str(key.value) in lines:
            raise InputError(f"{path}:{key.start_mark.line + 1}: '{key.value}' is given twice", hint="give it once")
        lines[str(key.value)] = key.start_mark.line + 1
    given = {str(key): value for key, value in values.items() if value is not None}
    accumulation = tuple(key for key in (*OWN, *RULES) if RULES.get(key, key) == "gradient_accumulation")
    return ConfigFile(path=path, given=given, lines=lines, tool=_tool_of(given), tools=TOOLS, accumulation=accumulation)


def _convert(file: ConfigFile) -> Result:
    """All rules, those of given keys first: a default yields to whatever the file says."""
    options: Options = {}
    notes: list[str] = []
    done: list[Converter] = []
    for key in {**file.given, **file.defaults}:
        rule = RULES.get(key, key if key in OWN else None)
        if rule is None or rule in done or _is_unused(file, key):
            continue
        if isinstance(rule, str):
            converted: Options = {rule: (key, _value(file, key, rule))}
        else:
            done.append(rule)
            converted, more = rule(file)
            notes += more
        for name, (origin, value) in converted.items():
            old, before = options.setdefault(name, (origin, value))
            if origin != old and value != before and {origin, old} <= file.given.keys():
                words = f"{old} and {origin} contradict each other: {name} {before} or {value}"
                raise file.fault(origin, "keep one of the two", words)
            if old not in file.given and origin in file.given:
                options[name] = (origin, value)
    return options, notes


def _value(file: ConfigFile, key: str, name: str) -> Any:
    """The value of one of our fields, whatever it is called in the file."""
    value = file.get(key)
    if name == "target_modules":
        return file.modules(key, value)
    if isinstance(value, bool) and name in {"checkpointing", "precision"}:
        return {"checkpointing": ("off", "on"), "precision": ("auto", "bf16")}[name][value]
    if name == "num_layers":
        return max(file.whole(key), 0) or None  # mlx: 0 and -1 mean all
    if file.tool and name in file.tool.readers:
        return file.tool.readers[name](file, key)
    return file.whole(key) if OWN[name] is int else file.number(key) if OWN[name] is float else str(value)


def _check(file: ConfigFile, converted: Options, options: Mapping[str, Any]) -> None:
    """Ranges and choices, told with file, line and key."""
    for settings in (Weights(), Training()):
        try:
            build(settings, {name: options[name] for name in flat(settings) if name in options})
        except InputError as error:
            key = converted.get(error.message.partition(" ")[0], converted.get("tune", ("", None)))[0]
            raise file.fault(key, error.hint, f"{key}: {error.message}") from error


def _remarks(file: ConfigFile, converted: Options, options: Mapping[str, Any]) -> list[str]:
    """What the tool's defaults fill in, and what differs from it though no key says so."""
    if not file.tool:
        names = " from ".join(tool.name for tool in TOOLS)
        return [f"no key tells {names}: what the file leaves out keeps our defaults"]
    filled = [f"{name} {value}" for name, (key, value) in converted.items() if key not in file.given]
    notes = [f"not in the file, so as {file.tool.name} has it: {', '.join(filled)}"] if filled else []
    if options.get("max_length"):
        notes.append(f"max_length {options['max_length']}: longer examples are left out and reported, not cut")
    return notes + file.tool.remarks(file, options)


def _refusal(key: str, value: Any) -> str:
    return next((hint for tool in TOOLS if (hint := tool.refusal(key, value))), "")


def _is_unused(file: ConfigFile, key: str) -> bool:
    return file.tool is not None and file.tool.unused(file, key)


def _kind(annotation: Any) -> type:
    kinds = [get_origin(kind) or kind for kind in get_args(annotation) or (annotation,)]
    return next((kind for kind in kinds if kind in {int, float, tuple}), str)


OWN: dict[str, type] = {field.name: _kind(field.type) for field in list_fields(Dpo)}
"""Our own names, and what they hold."""
RULES: dict[str, str | Converter] = {
    **{key: name for tool in TOOLS for key, name in tool.renamed.items()},
    **_SHARED_RENAMED,
    **{key: converter for tool in TOOLS for converter, keys in tool.converters.items() for key in keys},
    **dict.fromkeys(("epochs", "max_steps"), read_length),
}
REFUSED = {key: refusal for tool in TOOLS for key, refusal in tool.refused.items()}
IGNORED = {*_SHARED_IGNORED, *(key for tool in TOOLS for key in tool.ignored)}


def only_keys(tool: Tool) -> set[str]:
    """The keys that tell a tool's files from those of the others."""
    others = {key for other in TOOLS if other is not tool for key in other.keys}
    return tool.keys - others - OWN.keys()


def _tool_of(keys: Collection[str]) -> Tool | None:
    """Whose config has these keys: who has most that the others lack, the first of equals; None: nobody has any."""
    counts = {tool.name: len(only_keys(tool).intersection(keys)) for tool in TOOLS}
    first = max(TOOLS, key=lambda tool: counts[tool.name])
    return first if counts[first.name] else None
