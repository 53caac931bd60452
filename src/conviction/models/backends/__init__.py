"""Where models come from: one file a backend, and its line here."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import get_type_hints

from conviction.errors import InputError, nearest
from conviction.models.engine.protocol import Engine

BACKENDS = {
    "transformers": "conviction.models.backends.transformers:load",
    "scripted": "conviction.models.backends.scripted:load",
}
"""Name → a function ``load(name, *, device, dtype, trust_remote_code, log)`` whose annotation says what
engine it returns."""

DEFAULT_BACKEND = "transformers"
OPTIONS = ("device", "dtype", "trust_remote_code", "log")


def check_backend_name(name: str) -> str:
    """The name itself. Raises InputError, with the nearest, for one that is not in the table."""
    if name not in BACKENDS:
        hint = f"{nearest(name, BACKENDS)}use one of: {', '.join(BACKENDS)}"
        raise InputError(f"unknown backend '{name}'", hint=hint)
    return name


def find_backend(name: str) -> Callable[..., Engine]:
    """The loader of a backend.

    Raises InputError for an unknown name, and for an entry that lacks what ``Engine`` asks for: named here,
    before anything is loaded.
    """
    entry = BACKENDS[check_backend_name(name)]
    module, _, attribute = entry.partition(":")
    hint = "docs: an entry is 'module:load', and load's return annotation is a class with the members of Engine"
    try:
        load: Callable[..., Engine] = getattr(import_module(module), attribute)
        inspect.signature(load).bind(name, **dict.fromkeys(OPTIONS))
        engine = get_type_hints(load)["return"]
    except KeyError:
        raise InputError(f"the backend '{name}' ({entry}) does not annotate what it loads", hint=hint) from None
    except (ImportError, AttributeError, NameError, TypeError, ValueError) as error:
        raise InputError(f"the backend '{name}' ({entry}) cannot be used: {error}", hint=hint) from error
    if lacking := sorted(_members(Engine) - _members(engine)):
        raise InputError(
            f"{getattr(engine, '__name__', engine)} of the backend '{name}' ({entry}) lacks {', '.join(lacking)}",
            hint=hint,
        )
    return load


def _members(kind: type) -> set[str]:
    """Public attributes of a class: set, defined, or annotated as fields."""
    annotated = {name for base in getattr(kind, "__mro__", ()) for name in vars(base).get("__annotations__", {})}
    return {name for name in {*dir(kind), *annotated} if not name.startswith("_")}
