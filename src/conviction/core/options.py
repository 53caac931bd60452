"""Fields that know their range and their meaning, and ``key=value`` options that fill them.

An intervention, a guard or a set of training settings is a frozen dataclass of
``setting`` fields; a field may itself be such a dataclass. Options address all
fields by their bare names, so names are unique within one tree. Entries of the
open tables (losses, the guard's sensors) declare theirs as ``Option``, and
``settings_class`` makes one dataclass of them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import types
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from conviction.errors import InputError, nearest

T = TypeVar("T")

LARGEST_WHOLE, LARGEST = 1_000_000, 1e9
"""What no number may exceed, in size, whose field does not say otherwise."""
LARGEST_SHOWN = 10**20


def setting(
    default: Any,
    meaning: str,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    choices: Collection[str] | None = None,
    sweepable: bool = False,
) -> Any:
    """A dataclass field with a default, one line on what it means, and the values that it takes.

    choices    the names that it may have, read when a value is checked: a table may grow
    sweepable  whether a forecast can try other values on the same gradients: it changes a run,
               and not where its gradients are taken (the adapter's shape and the seed would)
    """
    bounds = {"above": above, "at_least": at_least, "below": below, "at_most": at_most}
    metadata = {"meaning": meaning, "bounds": bounds, "choices": choices, "sweepable": sweepable}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
    """A ``setting`` that an entry of an open table declares under its own name."""

    name: str
    meaning: str
    default: Any = None
    type: Any = float
    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    sweepable: bool = False

    def field(self) -> Any:
        """The dataclass field."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return setting(**{name: value for name, value in values.items() if name not in {"name", "type"}})


@functools.cache
def settings_class(name: str, options: tuple[Option, ...]) -> type:
    """A frozen dataclass of these options: the same class whenever the options are the same."""
    return dataclasses.make_dataclass(
        name,
        [(option.name, option.type, option.field()) for option in options],
        namespace={"__post_init__": check_settings, "__doc__": "Options that the entries of a table declare."},
        frozen=True,
        kw_only=True,
    )


def flat_fields(kind: type[T]) -> type[T]:
    """Let a settings dataclass, whose ``__init__`` calls ``fill_fields``, give the fields of its nested settings.

    ``Dpo(learning_rate=1e-4)`` is ``Dpo(training=Training(learning_rate=1e-4))``, as on the command line, and
    has the attribute ``learning_rate``.
    """

    def __getattr__(self: Any, name: str) -> Any:  # noqa: N807
        for value in vars(self).values():
            if dataclasses.is_dataclass(value) and name in (inner := flat(value)):
                return inner[name]
        raise AttributeError(f"'{kind.__name__}' object has no attribute '{name}'", name=name, obj=self)

    def __reduce__(self: Any) -> tuple[Any, ...]:  # noqa: N807
        return _rebuild, (kind, flat(self))  # the classes of open tables have no importable name

    for method in (__getattr__, __reduce__):
        method.__qualname__ = f"{kind.__qualname__}.{method.__name__}"
        setattr(kind, method.__name__, method)
    return kind


def _rebuild(kind: type[T], values: Mapping[str, Any]) -> T:
    return kind(**values)


def fill_fields(settings: Any, given: Mapping[str, Any]) -> None:
    """Set all fields of a settings dataclass; ``given`` may name fields of nested settings. Call it from ``__init__``.

    Such an ``__init__`` takes ``**fields: Any``: the fields of open tables are not known to type checkers. Raises
    InputError for a name that no level has (the nearest one is named), and for what ``check_settings`` refuses.
    """
    kind, rest = type(settings), dict(given)
    for field in dataclasses.fields(kind):
        default = _default(field)
        value = rest.pop(field.name, default)
        if dataclasses.is_dataclass(default) and dataclasses.is_dataclass(value):
            value = build(value, {name: rest.pop(name) for name in flat(value) if name in rest})
        object.__setattr__(settings, field.name, value)  # the class is frozen
    for name in rest:
        known = [field.name for field in list_fields(kind)]
        near = nearest(name, [*known, *(field.name for field in dataclasses.fields(kind))])
        label = getattr(kind, "name", kind.__name__.lower())
        raise InputError(f"{label} has no field '{name}'", hint=f"{near}fields: {', '.join(known)}")
    check_settings(settings)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Field:
    """One option of a settings class. ``path`` leads to it: ("training", "learning_rate")."""

    name: str
    path: tuple[str, ...]
    type: Any
    default: Any
    meaning: str
    sweepable: bool = False


def list_fields(kind: type, _path: tuple[str, ...] = ()) -> Iterator[Field]:
    """All options of a settings class, nested ones included."""
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        default, path = _default(field), (*_path, field.name)
        if dataclasses.is_dataclass(default):
            own = flat(default)
            for inner in list_fields(type(default), path):
                yield dataclasses.replace(inner, default=own[inner.name])  # as the outer class has it
            continue
        yield Field(
            name=field.name,
            path=path,
            type=hints[field.name],
            default=default,
            meaning=field.metadata.get("meaning", ""),
            sweepable=field.metadata.get("sweepable", False),
        )


def _default(field: dataclasses.Field[Any]) -> Any:
    """What a field holds where nothing is given: settings, where it is nested."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def check_settings(settings: Any) -> None:
    """Raise InputError for a field of the wrong type or out of its range. Call it from ``__post_init__``."""
    hints = get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value, default = getattr(settings, field.name), _default(field)
        if dataclasses.is_dataclass(default):
            if not isinstance(value, type(default)):
                wanted = f"give {type(default).__name__}, or its fields by their names"
                raise InputError(f"{field.name} is {value!r}", hint=wanted)
            continue
        choices = field.metadata.get("choices")
        allowed = _choices(hints[field.name]) if choices is None else tuple(choices)
        fits = any(_is_a(value, kind) for kind in _alternatives(hints[field.name]))
        if not fits or (choices is not None and value not in allowed):
            hint = f"{nearest(str(value), allowed)}use one of: {', '.join(allowed)}" if allowed else ""
            raise InputError(f"{field.name} is {value!r}", hint=hint or f"give {_wanted(hints[field.name])}")
        if not isinstance(value, bool) and isinstance(value, numbers.Real):
            check_number(field.name, value, **field.metadata.get("bounds", {}))


def parse_options(kinds: Iterable[type], options: Sequence[str]) -> list[dict[str, Any]]:
    """Split ``["beta=0.1", …]`` over the given settings classes: one dict of field values per class.

    Raises InputError for text that is not ``key=value``, a name that no class
    has (the nearest one is named), a value of the wrong type, or a name given twice.
    """
    tables = [{field.name: field for field in list_fields(kind)} for kind in kinds]
    values: list[dict[str, Any]] = [{} for _ in tables]
    for option in options:
        name, equals, text = option.partition("=")
        name = name.strip().replace("-", "_")
        if not equals:
            raise InputError(f"option '{option}' is not key=value", hint="write -o beta=0.1")
        owner = _owner(name, tables)
        if name in values[owner]:
            raise InputError(f"field '{name}' is given twice", hint="give each -o once")
        values[owner][name] = _parse(name, text.strip(), tables[owner][name].type)
    return values


def assign_fields(kinds: Iterable[type], values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The same for values that need no parsing. Raises InputError for a name that no class has."""
    tables = [{field.name: field for field in list_fields(kind)} for kind in kinds]
    owners = {name: _owner(name, tables) for name in values}
    return [{name: values[name] for name in values if owners[name] == i} for i in range(len(tables))]


def _owner(name: str, tables: Sequence[Mapping[str, Field]]) -> int:
    """Which table has the field. Raises InputError where none has."""
    owner = next((i for i, table in enumerate(tables) if name in table), None)
    if owner is None:
        known = [known for table in tables for known in table]
        raise InputError(f"there is no field '{name}'", hint=f"{nearest(name, known)}fields: {', '.join(known)}")
    return owner


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


def check_number(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> None:
    """Raise InputError for a number out of its range, which is named; without a bound of its own it is ``LARGEST``.

    A number beyond any use (a billion epochs) would be found out after hours, or by the end of the memory.
    """
    largest = LARGEST_WHOLE if isinstance(value, numbers.Integral) else LARGEST
    bounds = {
        "above": above,
        "at_least": -largest if at_least is None and above is None else at_least,
        "below": below,
        "at_most": largest if at_most is None and below is None else at_most,
    }
    inside = {
        "above": lambda v, b: v > b,
        "at_least": lambda v, b: v >= b,
        "below": lambda v, b: v < b,
        "at_most": lambda v, b: v <= b,
    }
    wanted = {word: bound for word, bound in bounds.items() if bound is not None}
    if not -math.inf < value < math.inf or not all(inside[word](value, bound) for word, bound in wanted.items()):
        ranges = " and ".join(f"{word.replace('_', ' ')} {_bound(bound)}" for word, bound in wanted.items())
        long = isinstance(value, numbers.Integral) and abs(int(value)) >= LARGEST_SHOWN
        shown = "a number of over 20 digits" if long else str(value)
        raise InputError(f"{name} is {shown}", hint=f"give a finite number {ranges}")


def _bound(bound: float) -> str:
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"


def _choices(annotation: Any) -> tuple[str, ...]:
    literals = [part for part in _alternatives(annotation) if get_origin(part) is Literal]
    return tuple(str(choice) for part in literals for choice in get_args(part))


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
