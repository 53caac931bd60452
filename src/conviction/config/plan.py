"""From what a user gives (topic or data, preset, config, options) to an intervention that is ready to apply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conviction.config.foreign import read_config
from conviction.config.presets import find_preset
from conviction.core.options import build, list_fields, parse_options
from conviction.core.storage import user_path
from conviction.data.reading import check_one_source, read_training_data
from conviction.data.topic import builtin_topics, load_topic
from conviction.data.training_data import TrainingData
from conviction.errors import InputError, nearest
from conviction.interventions import find_intervention
from conviction.models import DEFAULT_MODEL
from conviction.training.guard import Guard

if TYPE_CHECKING:
    from conviction.forecasting.rows import HeldOutPair

__all__ = ["Plan", "assemble", "plan_arms"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """An intervention with its guard, its model's name and where its material lies."""

    intervention: Any
    guard: Guard
    model: str
    topic: str | None
    data: str | None
    notes: tuple[str, ...]

    def training_data(self) -> TrainingData:
        """Read it."""
        return TrainingData.from_topic(load_topic(self.topic)) if self.topic else read_training_data(str(self.data))

    def held_out(self, test: str | None) -> list[HeldOutPair]:
        """What a forecast foresees flips of: ``test`` (a topic, or pairs), else the topic's test split, else nothing.

        Raises InputError for a file without pairs.
        """
        from conviction.forecasting.rows import HeldOutPair, held_out_pairs

        if test is None and self.topic is None:
            return []
        name = str(test or self.topic)
        if test is None or name in builtin_topics() or (user_path(name) / "topic.yaml").is_file():
            return held_out_pairs(load_topic(name))
        pairs = read_training_data(name).pairs
        if not pairs:
            raise InputError(f"{name} holds no pairs to ask", hint="give rows of prompt, chosen, rejected")
        return [HeldOutPair(pair, "target") for pair in pairs]


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
) -> Plan:
    """Merge a preset, then a config, then options, each over the one before.

    Raises InputError for an unknown name or field, a value out of its range, or
    when not exactly one of topic and data is known.
    """
    kind = find_intervention(name)
    imported = read_config(config) if config is not None else None
    data = data or (imported.data if imported and not topic else None)
    check_one_source(topic, data)
    start = find_preset(preset).options if preset is not None else {}
    known = {field.name for field in list_fields(kind)}
    foreign = imported.options if imported else {}
    unused = sorted(set(foreign) - known)
    given = {**start, **{key: value for key, value in foreign.items() if key in known}}
    _check_names(given, kind, str(preset))
    values, limits = parse_options([kind, Guard], options)
    if "mode" in limits:
        raise InputError("the guard's mode is given as an option", hint="write --guard strict, default, off or none")
    return Plan(
        intervention=build(kind(), {**given, **values}),
        guard=build(Guard(mode=guard), limits),
        model=model or (imported.model if imported else None) or DEFAULT_MODEL,
        topic=topic,
        data=data,
        notes=(imported.notes if imported else ())
        + ((f"{name} has no use for: {', '.join(unused)}",) if unused else ()),
    )


def _check_names(given: Mapping[str, Any], kind: type, where: str) -> None:
    known = [field.name for field in list_fields(kind)]
    for name in given:
        if name not in known:
            raise InputError(
                f"{where} sets '{name}', which {kind.__name__.lower()} does not have",
                hint=f"{nearest(name, known)}take it out, or choose another intervention",
            )


def plan_arms(names: Sequence[str], topic: str, model: str, options: Sequence[str], guard: str) -> tuple[Plan, ...]:
    """The arms of a study by name. options: ``ARM.FIELD=VALUE``.

    Raises InputError for an unknown arm or field, or an option of an arm that is not in the study.
    """
    if not names:
        raise InputError("a study needs an arm", hint="--interventions system_prompt,dpo: by name, with commas")
    for name in names:
        find_intervention(name)
    given: dict[str, list[str]] = {name: [] for name in names}
    for option in options:
        arm, dot, field = option.partition(".")
        if not dot or arm not in given:
            raise InputError(
                f"the option '{option}' names no arm of this study",
                hint=f"write ARM.FIELD=VALUE, for example {names[0]}.FIELD=…; arms: {', '.join(given)}",
            )
        given[arm].append(field)
    return tuple(
        assemble(name, topic=topic, data=None, model=model, options=given[name], config=None, preset=None, guard=guard)
        for name in given
    )
