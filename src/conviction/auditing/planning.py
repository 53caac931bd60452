"""From what a user names (data, topic, a place for a copy) to what is audited."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from conviction.auditing.fix import Change, fixed_path, write_fixed
from conviction.auditing.rule import Rule
from conviction.core.context import RunContext
from conviction.core.storage import user_path
from conviction.data.rows import Source, open_source
from conviction.data.topic import Topic, builtin_topics, load_topic
from conviction.data.training_data import TrainingData
from conviction.errors import InputError

__all__ = ["Plan", "plan_audit"]


@dataclass(frozen=True)
class Plan:
    """What to audit. source and target are there if a cleaned copy is to be written first."""

    data: str | Path | TrainingData
    topic: Topic | None
    split: str
    source: Source | None = None
    target: Path | None = None

    def write_copy(self, rules: Sequence[Rule], ctx: RunContext) -> list[Change] | None:
        """The cleaned copy, if one is wanted, and what was changed in it."""
        if self.source is None or self.target is None:
            return None
        return write_fixed(self.source, self.target, rules, ctx.progress("fixing"))


def plan_audit(
    data: str, *, topic: str | None, split: str, beta: float, fix: bool = False, output: Path | None = None
) -> Plan:
    """A topic's name as data means its own training pairs.

    Raises InputError for a beta that is none, or a copy that cannot be made.
    """
    if not 0 < beta < float("inf"):
        raise InputError(f"beta is {beta}", hint="give a finite number above 0")
    if output is not None and not fix:
        raise InputError("--output is given without --fix", hint="add --fix, which writes the cleaned copy there")
    if output is not None and output.suffix != ".jsonl":
        raise InputError(f"--output is {output}", hint="the copy is JSONL: give it a name that ends in .jsonl")
    if data in builtin_topics() or (user_path(data) / "topic.yaml").is_file():
        if fix:
            raise InputError(f"{data} is a topic: there is no file to copy", hint="edit the kit's items")
        kit = load_topic(data)
        return Plan(TrainingData.from_topic(kit), load_topic(topic) if topic else kit, split)
    known = load_topic(topic) if topic else None
    if not fix:
        return Plan(data, known, split)
    source = open_source(data, split=split)
    target = user_path(output) if output is not None else fixed_path(source)
    return Plan(target, known, "train", source, target)
