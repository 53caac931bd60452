"""What a user may give to a verb, and what it stands for: names are loaded, objects are taken as they are."""

from __future__ import annotations

import hashlib
import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from conviction.core.context import RunContext
from conviction.core.options import check_number, flat
from conviction.core.protocols import LanguageModel
from conviction.core.storage import user_path
from conviction.data.formats import training_data_from_rows
from conviction.data.reading import read_training_data
from conviction.data.topic import Topic, builtin_topics, load_topic, names_topic
from conviction.data.training_data import TrainingData
from conviction.errors import InputError, nearest

if TYPE_CHECKING:
    from conviction.forecasting.rows import HeldOutPair

__all__ = [
    "DataLike",
    "Load",
    "ModelLike",
    "Source",
    "TopicLike",
    "as_count",
    "as_folder",
    "as_model",
    "as_names",
    "as_source",
    "as_topic",
    "check_name",
    "described",
    "held_out",
    "load_like",
    "loading",
    "settings_of",
    "state_of",
    "told",
]

TopicLike = str | Path | Topic
"""A built-in topic's name, the folder of one, or a topic."""
DataLike = str | Path | Topic | TrainingData | Sequence[Mapping[str, Any]]
"""A topic, as above; or a file, a folder or a hub name of rows, the rows themselves, or training data."""
ModelLike = str | Path | LanguageModel
"""An embedded model's name, a folder, a .gguf file, a hub id; or a model."""
Load = Callable[..., LanguageModel]
"""Loads a model by its name, like ``load_model``: ``functools.partial(load_model, device="cuda", dtype="bf16")``."""


@dataclass(frozen=True)
class Source:
    """Training data, and the topic that it is from, if it is from one."""

    data: TrainingData
    topic: Topic | None

    @property
    def label(self) -> str:
        """What a run folder is named after."""
        return self.data.name.replace("/", "-")


def as_topic(value: Any, name: str = "topic") -> Topic:
    """Raises TopicError for a name that is none, InputError for what is no topic; ``name`` is the parameter's."""
    if isinstance(value, Topic):
        return value
    if not isinstance(value, str | Path):
        raise _wrong(name, value, "a built-in topic's name, the folder of one, or a Topic")
    return load_topic(value)


def as_source(value: Any, name: str = "data") -> Source:
    """Raises InputError for what is neither a topic nor data; ``name`` is the parameter's."""
    if isinstance(value, TrainingData):
        return Source(value, None)
    if isinstance(value, Topic) or (isinstance(value, str | Path) and names_topic(value)):
        topic = as_topic(value)
        return Source(TrainingData.from_topic(topic), topic)
    if isinstance(value, Sequence) and value and all(isinstance(row, Mapping) for row in value):
        return Source(training_data_from_rows(value, name=name), None)
    if not isinstance(value, str | Path):
        wanted = "a topic (its name, its folder or a Topic), a file, a folder or a hub name of rows, or TrainingData"
        raise _wrong(name, value, wanted)
    check_name(value, name)
    return Source(read_training_data(value), None)


def told(source: Source, ctx: RunContext) -> Source:
    """The same source; what a user should know of how its data was read is told."""
    for note in source.data.notes:
        ctx.log(f"note: {source.data.name}: {note}")
    return source


def check_name(value: str | Path, name: str = "data") -> None:
    """Raise InputError for a name that can only be a topic's, mistyped; ``name`` is the parameter's."""
    if not os.path.lexists(user_path(value)) and (close := nearest(str(value), builtin_topics())):
        raise InputError(
            f"{name} is '{value}': there is no such topic, file or folder",
            hint=f"{close}topics: {', '.join(builtin_topics())}",
        )


def as_model(value: Any, load: Load, name: str = "model") -> LanguageModel:
    """Raises ModelNotFoundError for an unknown name, InputError for what is no model; ``name`` is the parameter's."""
    if isinstance(value, str | Path):
        return load(str(value))
    if isinstance(value, type) or not isinstance(value, LanguageModel):
        raise _wrong(name, value, "a model's name, folder or hub id, or what load_model gives")
    return value


def as_minutes(value: float | Literal["auto"] | None) -> float | Literal["auto"] | None:
    """Minutes of searching for settings; None: no search. Raises InputError for what is no time."""
    if value is not None and value != "auto":
        check_number("tune_minutes", value, at_least=0)
    return value


def as_folder(value: Any, name: str = "run") -> Path:
    """Raises InputError for what is no path; ``name`` is the parameter's."""
    if not isinstance(value, str | Path):
        raise _wrong(name, value, "a folder, as a str or a Path")
    return user_path(value)


def as_names(value: Any, name: str) -> list[str]:
    """``"a,b"`` or ``["a", "b"]``. Raises InputError for anything else; ``name`` is the parameter's."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, Sequence) or not all(isinstance(part, str) for part in value):
        raise _wrong(name, value, "names, in a list or in one text with commas")
    return list(value)


def as_count(value: Any, name: str, *, at_least: int = 1, at_most: int) -> int:
    """Raises InputError for what is no whole number within the bounds; ``name`` is the parameter's."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise _wrong(name, value, "a whole number")
    check_number(name, value, at_least=at_least, at_most=at_most)
    return int(value)


def held_out(test: DataLike | Sequence[HeldOutPair] | None, source: Source) -> list[HeldOutPair]:
    """What a forecast foresees flips of: ``test``; else the test split of the source's topic; else nothing.

    Raises InputError for a test without pairs.
    """
    from conviction.forecasting.rows import HeldOutPair, held_out_pairs

    if test is None:
        return held_out_pairs(source.topic) if source.topic is not None else []
    if isinstance(test, Sequence) and all(isinstance(pair, HeldOutPair) for pair in test):
        return [pair for pair in test if isinstance(pair, HeldOutPair)]
    asked = as_source(test, "test")
    if asked.topic is not None:
        return held_out_pairs(asked.topic)
    if not asked.data.pairs:
        raise InputError(f"{asked.data.name} holds no pairs to ask", hint="give rows of prompt, chosen, rejected")
    return [HeldOutPair(pair, "target") for pair in asked.data.pairs]


def loading(load: Load | None, ctx: RunContext, like: Any = None) -> Load:
    """How models are loaded: as ``load`` says, else as the model ``like`` was, else with the defaults; with a log."""
    from conviction.models import load_model

    return load if load is not None else partial(load_like(like, load) or load_model, log=ctx.log)


def load_like(model: Any, load: Load | None) -> Load | None:
    """How what is made of a model is loaded: as ``load`` says, else as the model was; None: with the defaults."""
    if load is not None or not isinstance(model, LanguageModel):
        return load
    from conviction.models import load_model
    from conviction.models.backends import DEFAULT_BACKEND
    from conviction.models.devices import KNOWN

    known = model.describe()
    return partial(
        load_model,
        backend=known.get("backend", DEFAULT_BACKEND),
        device=str(known.get("device", "auto")).partition(":")[0],
        dtype=known["dtype"] if known.get("dtype") in KNOWN else "auto",  # that of quantised weights is their own
    )


def described(model: Any, load: Load | None) -> dict[str, Any]:
    """What a model is, and how it is loaded, to tell one piece of work from another: names alone do not.

    Of an object the fingerprint of its weights; of a local folder or file the state of its files, which is read
    without loading anything.
    """
    how = load.keywords if isinstance(load, partial) else {}
    call = {name: value for name, value in how.items() if isinstance(value, str | int | float | None)}
    call |= {name: repr(value) for name, value in how.items() if name not in call and not callable(value)}
    if load is not None and not isinstance(load, partial):
        call["load"] = getattr(load, "__qualname__", type(load).__qualname__)
    if isinstance(model, str | Path):
        return {"model": str(model), "model_files": state_of(model), **call}
    known = model.describe() if isinstance(model, LanguageModel) else {}
    return {
        "model": getattr(model, "id", repr(model)),
        "model_weights": known.get("fingerprint"),
        "prompt": repr(known.get("prompted")),
        **call,
    }


def state_of(path: Any) -> str | None:
    """A hash over names, sizes and times of the files at a path; None where there are none."""
    if not isinstance(path, str | Path) or not os.path.lexists(root := user_path(path)):
        return None
    files = [root] if os.path.isfile(root) else sorted(p for p in root.rglob("*") if os.path.isfile(p))
    seen = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return hashlib.sha256(repr(seen).encode()).hexdigest()


def settings_of(settings: Any) -> dict[str, str]:
    """All fields by name, and of those that name a file or a folder what state that is in.

    ``index`` is left out: it is a cache that the work itself brings up to date.
    """
    values = flat(settings)
    states = {
        f"{name} (files)": state for name, value in values.items() if name != "index" and (state := state_of(value))
    }
    return {name: repr(value) for name, value in values.items()} | states


def _wrong(name: str, value: Any, wanted: str) -> InputError:
    shown = repr(value) if len(repr(value)) <= 60 else f"a {type(value).__name__}"
    return InputError(f"{name} is {shown}", hint=f"give {wanted}")
