"""A config file of another tool: typed access to its keys, every fault with file, line, key and a way out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conviction.errors import InputError, nearest

UNCLIPPED = 1e9  # a norm that no gradient reaches: how "do not clip" is written here


@dataclass(frozen=True, kw_only=True)
class ConfigFile:
    """The keys of one file.

    given         without nulls: the tools read them as "not given"
    lines         key → line
    tool          whose config it is; None: no key says so
    tools         all that it could be of
    accumulation  the keys that mean gradient accumulation
    """

    path: Path
    given: Mapping[str, Any]
    lines: Mapping[str, int]
    tool: Tool | None
    tools: tuple[Tool, ...]
    accumulation: tuple[str, ...]

    def get(self, key: str) -> Any:
        """What the file says, else the default of its tool, else that of the tool whose key it is."""
        tables = [self.given, self.defaults, *(tool.defaults for tool in self.tools)]
        return next((table[key] for table in tables if key in table), None)

    @property
    def defaults(self) -> Mapping[str, Any]:
        """What its tool means by keys that are left out."""
        return self.tool.defaults if self.tool else {}

    def fault(self, key: str, hint: str, message: str = "") -> InputError:
        """The error to raise about a key."""
        message = message or f"{key} is {self.get(key)!r}"
        return InputError(f"{self.path}:{self.lines.get(key, 1)}: {message}", hint=hint)

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
        """A number without a fraction."""
        number = self.number(key, value)
        if not number.is_integer():
            raise self.fault(key, f"give a whole number, not {number:g}")
        return int(number)

    def flag(self, key: str) -> bool:
        """True or false."""
        if not isinstance(self.get(key), bool):
            raise self.fault(key, "give true or false")
        return bool(self.get(key))

    def choice(self, key: str, table: Mapping[str, str], value: Any = None, also: str = "") -> str:
        """What one of the tool's words is here. ``also`` ends the hint."""
        word = str(self.get(key) if value is None else value)
        if word not in table:
            raise self.fault(key, f"{nearest(word, table)}there is {', '.join(table)}{also}")
        return table[word]

    def table(self, key: str) -> dict[str, Any]:
        """A mapping; an empty one for a key that is left out."""
        if not isinstance(self.get(key) or {}, dict):
            raise self.fault(key, "give a mapping")
        return dict(self.get(key) or {})

    def share(self, key: str, steps: float) -> float:
        """So many steps as a share of all."""
        if steps and not self.steps:
            raise self.fault(key, "warm-up is a share of all steps here: add max_steps, or write warmup: 0.1 instead")
        return steps / self.steps if steps else 0.0

    @property
    def steps(self) -> int:
        """Optimiser steps that the file asks for, 0 where it does not say; ``iters`` counts batches."""
        if "iters" not in self.given:
            return max(self.whole("max_steps"), 0) if "max_steps" in self.given else 0
        key = self.one_of(*self.accumulation)
        steps = self.whole("iters") // max(self.whole(key) if key else 1, 1)
        if steps < 1 or "max_steps" in self.given:
            raise self.fault("iters", "mlx counts batches: give as many as make a step, or more, and no max_steps")
        return steps

    def modules(self, key: str, value: Any) -> tuple[str, ...] | None:
        """Names of linear layers; of a path such as self_attn.q_proj, the last part. None: all but the head."""
        names = value.split(",") if isinstance(value, str) else value
        if names == ["all-linear"]:
            return None
        if not isinstance(names, list) or not names or any(set(str(name)) & set("*\\()[]|^$+?") for name in names):
            raise self.fault(key, "give a list of names such as [q_proj, v_proj]; patterns are not understood")
        paths = [str(name).strip().split(".") for name in names]
        if any(part.isdigit() for path in paths for part in path):
            raise self.fault(key, "single layers cannot be chosen: num_layers takes the last ones")
        return tuple(dict.fromkeys(path[-1] for path in paths))


Options = dict[str, tuple[str, Any]]  # our name → (the key it came by, value)
Result = tuple[Options, list[str]]  # and notes
Converter = Callable[[ConfigFile], Result]


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A program whose configs are read: an entry of ``TOOLS``, which its own file ends in.

    name        as a user knows it
    defaults    key → what it means to leave it out
    renamed     key → our field of the same meaning
    converters  function → the keys that it converts together
    readers     our field → how its value is read, where that is not the way of all tools
    refused     key → (values that have no effect, what to do about any other)
    ignored     keys that change nothing here
    places      keys of the model and of the data
    remarks     what differs, though no key of the file says so; given our options, too
    unused      whether the tool itself would not look at a key of this file
    """

    name: str
    defaults: Mapping[str, Any]
    renamed: Mapping[str, str]
    converters: Mapping[Converter, Collection[str]]
    refused: Mapping[str, tuple[tuple[Any, ...], str]]
    ignored: Collection[str]
    remarks: Callable[[ConfigFile, Mapping[str, Any]], list[str]]
    places: Collection[str] = ()
    readers: Mapping[str, Callable[[ConfigFile, str], Any]] = field(default_factory=dict)
    unused: Callable[[ConfigFile, str], bool] = lambda _file, _key: False

    @property
    def keys(self) -> set[str]:
        """All keys of it that become something here, or nothing."""
        converted = {key for keys in self.converters.values() for key in keys}
        return {*self.renamed, *converted, *self.refused, *self.ignored, *self.places}

    def refusal(self, key: str, value: Any) -> str:
        """What to do about a value that cannot be had here; '' where the key does no harm."""
        idle, hint = self.refused.get(key, ((value,), ""))
        return "" if any(value == one or _number(value) == _number(one) for one in idle) else hint


def read_length(file: ConfigFile) -> Result:
    """How long a run is: epochs, steps, or batches; both tools let steps go before epochs."""
    steps, given, in_epochs = file.steps, file.given.keys(), "num_train_epochs" in file.defaults
    if "iters" in given:
        note = f"iters {file.get('iters')} are batches: {steps} steps, however often that goes through the data"
        note += "; epochs is not heeded, as in mlx-lm-lora" if "epochs" in given else ""
        return {"max_steps": ("iters", steps), "epochs": ("iters", steps)}, [note]
    if steps and (in_epochs or "num_train_epochs" in given) and "epochs" not in given:
        return dict.fromkeys(("max_steps", "epochs"), ("max_steps", steps)), ["max_steps decides, not the epochs"]
    options: Options = {"max_steps": ("max_steps", steps)} if steps else {}
    key = file.one_of("epochs", "num_train_epochs") or ("num_train_epochs" if in_epochs else "")
    return options | ({"epochs": (key, file.whole(key))} if key else {}), []


def _number(value: Any) -> Any:
    """YAML takes 1e-8 for text."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return value
