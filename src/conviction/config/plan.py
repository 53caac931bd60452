"""An intervention that is ready to be applied: from its name, fields and guard, or from a command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conviction.config.foreign import read_config
from conviction.config.presets import find_preset
from conviction.core.options import assign_fields, build, flat, list_fields, parse_options
from conviction.data.columns import NO_COLUMNS
from conviction.data.reading import check_one_source, read_source
from conviction.data.topic import Topic
from conviction.data.training_data import TrainingData
from conviction.errors import InputError, nearest
from conviction.interventions import check_installed, find_intervention
from conviction.models import DEFAULT_MODEL
from conviction.training.guard import Guard


@dataclass(frozen=True, kw_only=True)
class Plan:
    """An intervention, and the limits that it is applied under. given: fields that the user set, which stay."""

    intervention: Any
    guard: Guard
    given: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a command line asks for: a plan, and the names of a model and of a topic or data."""

    plan: Plan
    model: str
    topic: str | None
    data: str | None
    notes: tuple[str, ...]
    columns: Mapping[str, str] = field(default_factory=dict)

    def source(self) -> Topic | TrainingData:
        """Read the topic or the data."""
        return read_source(self.topic, self.data, self.columns)


def plan_intervention(
    intervention: Any, fields: Mapping[str, Any] | None = None, guard: str | Guard | None = None
) -> Plan:
    """An intervention by name, one that is there already, or a plan, with some fields of it and of its guard replaced.

    Raises InputError for an unknown name or field, a value out of its range, or what is no intervention,
    MissingExtraError where a package that it needs is not installed: nothing has begun then.
    """
    fields = fields or {}
    given: frozenset[str] = frozenset()
    if isinstance(intervention, Plan):
        intervention, given = intervention.intervention, intervention.given
    if isinstance(intervention, str):
        intervention = find_intervention(intervention)()
    if isinstance(intervention, type) or not hasattr(intervention, "apply"):
        raise InputError(
            f"intervention is {intervention!r}", hint='give a name ("dpo"), or an object such as Dpo(beta=0.1)'
        )
    check_installed(intervention)
    if guard is not None and not isinstance(guard, str | Guard):
        raise InputError(f"guard is {guard!r}", hint='give "strict", "default", "off", "none" or a Guard')
    limits = Guard(mode=guard) if isinstance(guard, str) else guard or Guard()
    given |= _changed_fields(intervention)
    if not fields:
        return Plan(intervention=intervention, guard=limits, given=given)
    own, of_guard = assign_fields([type(intervention), Guard], fields)
    _check_mode(of_guard)
    return Plan(intervention=build(intervention, own), guard=build(limits, of_guard), given=given | own.keys())


def _changed_fields(intervention: Any) -> frozenset[str]:
    """Fields that an intervention does not have by default: somebody set them."""
    if not dataclasses.is_dataclass(intervention):
        return frozenset()
    kind: Any = type(intervention)
    try:
        default = flat(kind())
    except TypeError:  # one that has no defaults was given all of them
        return frozenset(flat(intervention))
    return frozenset(name for name, value in flat(intervention).items() if value != default.get(name))


def plan_arms(
    interventions: Sequence[Any], options: Mapping[str, Mapping[str, Any]], guard: str | Guard | None
) -> tuple[Plan, ...]:
    """The arms of a study. options: name of an arm → its fields.

    Raises InputError for an unknown arm or field, an arm that is named twice, or options of an arm that is not
    in the study.
    """
    names = [one if isinstance(one, str) else getattr(one, "name", repr(one)) for one in interventions]
    if not names:
        raise InputError("a study needs an arm", hint="name interventions: `conviction interventions` lists them")
    if len(set(names)) < len(names):
        raise InputError("an intervention is named twice", hint="give each once: two settings of one are two studies")
    for name in options:
        if name not in names:
            raise InputError(
                f"options are given for '{name}', which is no arm of this study",
                hint=f"{nearest(name, names)}arms: {', '.join(names)}",
            )
    return tuple(
        plan_intervention(one, options.get(name), guard) for name, one in zip(names, interventions, strict=True)
    )


def parse_arm_options(names: Sequence[str], options: Sequence[str]) -> dict[str, dict[str, Any]]:
    """``["dpo.beta=0.05", …]`` as fields by arm.

    Raises InputError for an unknown arm or field, or an option of an arm that is not in the study.
    """
    given: dict[str, list[str]] = {name: [] for name in names}
    for option in options:
        arm, dot, field = option.partition(".")
        if not dot or arm not in given:
            example = f", for example {names[0]}.FIELD=…" if names else ""
            raise InputError(
                f"the option '{option}' names no arm of this study",
                hint=f"write ARM.FIELD=VALUE{example}; arms: {', '.join(given)}",
            )
        given[arm].append(field)
    parsed = {name: parse_options([find_intervention(name), Guard], texts) for name, texts in given.items()}
    return {name: {**own, **limits} for name, (own, limits) in parsed.items()}


def assemble(
    name: str,
    *,
    topic: str | None,
    data: str | None,
    model: str | None,
    options: Sequence[str],
    config: Path | None,
    preset: str | None,
    guard: str,
    columns: Mapping[str, str] = NO_COLUMNS,
) -> Job:
    """Merge a preset, then a config, then options, each over the one before.

    Raises InputError for an unknown name or field, a value out of its range, or
    when not exactly one of topic and data is known.
    """
    kind = find_intervention(name)
    imported = read_config(config) if config is not None else None
    data = data or (imported.data if imported and not topic else None)
    check_one_source(topic, data)
    start = find_preset(preset).options if preset is not None else {}
    known = [field.name for field in list_fields(kind)]
    if strange := next((key for key in start if key not in known), None):
        raise InputError(
            f"{preset} sets '{strange}', which {kind.__name__.lower()} does not have",
            hint=f"{nearest(strange, known)}take it out, or choose another intervention",
        )
    foreign = imported.options if imported else {}
    unused = sorted(foreign.keys() - known)
    given = {**start, **{key: value for key, value in foreign.items() if key in known}}
    values, limits = parse_options([kind, Guard], options)
    _check_mode(limits)
    return Job(
        plan=plan_intervention(name, {**given, **values, **limits}, guard),
        model=model or (imported.model if imported else None) or DEFAULT_MODEL,
        topic=topic,
        data=data,
        columns=columns,
        notes=(imported.notes if imported else ())
        + ((f"{name} has no use for: {', '.join(unused)}",) if unused else ()),
    )


def _check_mode(limits: Mapping[str, Any]) -> None:
    if "mode" in limits:
        raise InputError("the guard's mode is given as an option", hint="write --guard strict, default, off or none")
