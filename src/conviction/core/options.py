"""Fields that know their range and their meaning, and ``key=value`` options that fill them.

An intervention, a guard or a set of training settings is a frozen dataclass of
``setting`` fields; a field may itself be such a dataclass. Options address all
fields by their bare names, so names are unique within one tree.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from conviction.errors import InputError, nearest

__all__ = ["Field", "build", "check_settings", "flat", "list_fields", "parse_options", "setting"]

T = TypeVar("T")


def setting(
    default: Any,
    meaning: str,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> Any:
    """A dataclass field with a default, one line on what it means, and the range of numbers it takes."""
    bounds = {"above": above, "at_least": at_least, "below": below, "at_most": at_most}
    return dataclasses.field(default=default, metadata={"meaning": meaning, "bounds": bounds})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Field:
    """One option of a settings class. ``path`` leads to it: ("training", "learning_rate")."""

    name: str
    path: tuple[str, ...]
    type: Any
    default: Any
    meaning: str


def list_fields(kind: type, _path: tuple[str, ...] = ()) -> Iterator[Field]:
    """All options of a settings class, nested ones included."""
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        annotation = hints[field.name]
        default = field.default if field.default is not dataclasses.MISSING else None
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
            for inner in list_fields(annotation, (*_path, field.name)):
                own = flat(default).get(inner.name, inner.default) if default is not None else inner.default
                yield dataclasses.replace(inner, default=own)  # as the outer class has it
            continue
        meaning = field.metadata.get("meaning", "")
        yield Field(name=field.name, path=(*_path, field.name), type=annotation, default=default, meaning=meaning)


def check_settings(settings: Any) -> None:
    """Raise InputError for a field of the wrong type or out of its range. Call it from ``__post_init__``."""
    hints = get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            continue
        allowed = _choices(hints[field.name])
        if not any(_is_a(value, kind) for kind in _alternatives(hints[field.name])):
            hint = f"{nearest(str(value), allowed)}use one of: {', '.join(allowed)}" if allowed else ""
            raise InputError(f"{field.name} is {value!r}", hint=hint or f"give {_wanted(hints[field.name])}")
        _check_range(field.name, value, field.metadata.get("bounds", {}))


def parse_options(kinds: Iterable[type], options: Sequence[str]) -> list[dict[str, Any]]:
    """Split ``["beta=0.1", …]`` over the given settings classes: one dict of field values per class.

    Raises InputError for text that is not ``key=value``, a name that no class
    has (the nearest one is named), a value of the wrong type, or a name given twice.
    """
    tables = [{field.name: field for field in list_fields(kind)} for kind in kinds]
    known = [name for table in tables for name in table]
    results: list[dict[str, Any]] = [{} for _ in tables]
    for option in options:
        name, equals, text = option.partition("=")
        name = name.strip().replace("-", "_")
        if not equals:
            raise InputError(f"option '{option}' is not key=value", hint="write -o beta=0.1")
        owner = next((i for i, table in enumerate(tables) if name in table), None)
        if owner is None:
            raise InputError(f"there is no field '{name}'", hint=f"{nearest(name, known)}fields: {', '.join(known)}")
        if name in results[owner]:
            raise InputError(f"field '{name}' is given twice", hint="give each -o once")
        results[owner][name] = _parse(name, text.strip(), tables[owner][name].type)
    return results


def build(start: T, values: Mapping[str, Any]) -> T:
    """A copy of settings with some fields replaced, nested ones by their bare names."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(start):  # type: ignore[arg-type]
        old = getattr(start, field.name)
        if dataclasses.is_dataclass(old) and not isinstance(old, type):
            inner = {name: values[name] for name in flat(old) if name in values}
            if inner:
                changes[field.name] = build(old, inner)
        elif field.name in values:
            changes[field.name] = values[field.name]
    return dataclasses.replace(start, **changes)  # type: ignore[type-var]


def flat(settings: Any) -> dict[str, Any]:
    """All field values by bare name, nested ones included: what a run records."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        values.update(flat(value) if dataclasses.is_dataclass(value) else {field.name: value})
    return values


def _check_range(name: str, value: Any, bounds: Mapping[str, float | None]) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    tests = {
        "above": lambda v, b: v > b,
        "at_least": lambda v, b: v >= b,
        "below": lambda v, b: v < b,
        "at_most": lambda v, b: v <= b,
    }
    for word, bound in bounds.items():
        if not -math.inf < value < math.inf or (bound is not None and not tests[word](value, bound)):
            ranges = " and ".join(f"{w.replace('_', ' ')} {b:g}" for w, b in bounds.items() if b is not None)
            raise InputError(f"{name} is {value}", hint=f"give a finite number {ranges}".rstrip())


def _choices(annotation: Any) -> tuple[str, ...]:
    results: list[str] = []
    for part in _alternatives(annotation):
        if get_origin(part) is Literal:
            results += [str(choice) for choice in get_args(part)]
    return tuple(results)


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in {Union, types.UnionType} else (annotation,)


def _is_a(value: Any, kind: Any) -> bool:
    """Whether a value has the type of an annotation; numpy's numbers count, and True is no number."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if kind in {int, float}:
        return isinstance(value, numbers.Integral if kind is int else numbers.Real) and not isinstance(value, bool)
    kind = get_origin(kind) or kind
    return not isinstance(kind, type) or isinstance(value, kind)


def _wanted(annotation: Any) -> str:
    words = {bool: "true or false", int: "a whole number", float: "a number", tuple: "a tuple of names"}
    kinds = [get_origin(kind) or kind for kind in _alternatives(annotation) if kind is not type(None)]
    return " or ".join(words.get(kind, getattr(kind, "__name__", str(kind))) for kind in kinds)


def _parse(name: str, text: str, annotation: Any) -> Any:
    kinds = _alternatives(annotation)
    if type(None) in kinds and text.lower() in {"none", "null", ""}:
        return None
    for kind in kinds:
        if kind is bool and text.lower() in {"true", "false", "yes", "no", "on", "off", "1", "0"}:
            return text.lower() in {"true", "yes", "on", "1"}
        if kind in {int, float}:
            try:
                return kind(text)
            except ValueError:
                continue
        if get_origin(kind) is tuple:
            return tuple(part.strip() for part in text.split(",") if part.strip())
        if kind is str or get_origin(kind) is Literal:
            return text
    raise InputError(f"{name} is '{text}'", hint=f"give {_wanted(annotation)}")
