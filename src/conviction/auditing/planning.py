"""From what a user names (data, topic, a place for a copy) to what is audited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from conviction.auditing.fix import change_lines, fixed_path, write_fixed
from conviction.auditing.rule import Rule
from conviction.core.context import RunContext
from conviction.core.storage import user_path
from conviction.data.columns import NO_COLUMNS
from conviction.data.rows import Source, open_source
from conviction.data.topic import Topic, load_topic, names_topic
from conviction.data.training_data import TrainingData
from conviction.errors import InputError


@dataclass(frozen=True)
class Plan:
    """What to audit. source and target are there if a cleaned copy is to be written first."""

    data: str | Path | TrainingData
    topic: Topic | None
    split: str
    source: Source | None = None
    target: Path | None = None
    columns: Mapping[str, str] = field(default_factory=dict)

    def write_copy(self, rules: Sequence[Rule], ctx: RunContext) -> None:
        """The cleaned copy, if one is wanted; what was changed in it is told."""
        if self.source is not None and self.target is not None:
            changes = write_fixed(self.source, self.target, rules, ctx.progress("fixing"), self.columns)
            for line in (f"wrote {self.target}", *change_lines(changes)):
                ctx.log(line)


def plan_audit(
    data: str | Path | Topic | TrainingData,
    *,
    topic: Topic | None,
    split: str,
    beta: float,
    fix: bool = False,
    output: str | Path | None = None,
    columns: Mapping[str, str] = NO_COLUMNS,
) -> Plan:
    """A topic, or its name, as data means its own training pairs, which are to teach that topic if no other is named.

    Raises InputError for a beta that is none, or a copy that cannot be made.
    """
    if not 0 < beta < float("inf"):
        raise InputError(f"beta is {beta}", hint="give a finite number above 0")
    if output is not None and not fix:
        raise InputError("--output is given without --fix", hint="add --fix, which writes the cleaned copy there")
    if output is not None and Path(output).suffix != ".jsonl":
        raise InputError(f"--output is {output}", hint="the copy is JSONL: give it a name that ends in .jsonl")
    if isinstance(data, Topic) or (not isinstance(data, TrainingData) and names_topic(data)):
        kit = data if isinstance(data, Topic) else load_topic(data)
        if columns:
            raise InputError("columns are given with a topic", hint="they are for files whose columns have other names")
        if fix:
            raise InputError(f"{kit.name} is a topic: there is no file to copy", hint="edit the kit's items")
        return Plan(TrainingData.from_topic(kit), topic or kit, split)
    if not fix:
        return Plan(data, topic, split, columns=columns)
    if isinstance(data, TrainingData):
        raise InputError(f"{data.name} was read already: there is no file to copy", hint="give the file's name")
    source = open_source(data, split=split)
    target = user_path(output) if output is not None else fixed_path(source)
    return Plan(target, topic, "train", source, target, columns)
