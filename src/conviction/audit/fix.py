"""A cleaned copy of a data set: the faults that have a safe repair, and a list of what was changed.

The input is never touched, and rows that no repair concerns keep all their
fields as they were.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conviction.audit.row import AuditRow
from conviction.audit.rows import rows_of_source
from conviction.audit.rule import Rule
from conviction.core.material import Pair
from conviction.core.protocols import Progress
from conviction.core.rows import Source
from conviction.core.storage import write_lines_atomic
from conviction.errors import InputError

__all__ = ["Change", "fixed_path", "write_fixed"]

UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Change:
    """What a rule's repair did to one row. did: dropped, edited, or left out because nothing could be read."""

    row: int
    code: str
    did: str


def fixed_path(source: Source) -> Path:
    """Where the copy goes if the user names no place: beside the file, else into the working directory."""
    if source.path is not None:
        stem = source.path.name.split(".")[0]
        return source.path.with_name(f"{stem}.fixed.jsonl")
    return Path(f"{source.name.replace('/', '-')}.fixed.jsonl")


def write_fixed(source: Source, target: Path, rules: Sequence[Rule], progress: Progress | None = None) -> list[Change]:
    """Write the copy as JSONL and return what was changed, in the order of the rows.

    Unusable rows are copied as they are; only those of which nothing could be
    read are left out. Raises InputError if ``target`` exists.
    """
    if target.exists():
        raise InputError(f"{target} exists already", hint="move it away, or name another place with --output")
    changes: list[Change] = []
    write_lines_atomic(target, _fixed(source, rules, changes, progress))
    return changes


def _fixed(source: Source, rules: Sequence[Rule], changes: list[Change], progress: Progress | None) -> Iterator[str]:
    drops = [(rule.code, rule.repair.drop()) for rule in rules if rule.repair and rule.repair.drop]
    edits = [(rule.code, rule.repair.edit) for rule in rules if rule.repair and rule.repair.edit]
    for row in rows_of_source(source, progress):
        if row.pair is None:
            if row.fields:
                yield _line(row.fields)
            else:
                changes.append(Change(row.number, UNREADABLE, "left out"))
            continue
        fields, edited = _edited(row, edits)
        # what is the same after the edits is the same
        cleaned = dataclasses.replace(row, pair=_edited_pair(row, edits)) if edited else row
        # every predicate sees every row, so that what one drops does not hide it from the next
        dropped = [code for code, drop in drops if drop(cleaned)]
        if dropped:
            changes.append(Change(row.number, dropped[0], "dropped"))
            continue
        changes += [Change(row.number, code, f"edited {side}") for code, side in edited]
        yield _line(fields)


def _line(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, ensure_ascii=False, default=str) + "\n"


def _edited(
    row: AuditRow, edits: Sequence[tuple[str, Callable[[str], str]]]
) -> tuple[Mapping[str, Any], list[tuple[str, str]]]:
    fields, edited = dict(row.fields), []
    for side in ("chosen", "rejected"):
        for code, edit in edits:
            new = _edit(fields[side], edit, whole=row.form == "texts")
            if new is not None:
                fields[side] = new
                edited.append((code, side))
    return fields, edited


def _edited_pair(row: AuditRow, edits: Sequence[tuple[str, Callable[[str], str]]]) -> Pair | None:
    chosen, rejected = row.chosen, row.rejected
    for _, edit in edits:
        chosen, rejected = edit(chosen) or chosen, edit(rejected) or rejected
    return None if row.pair is None else dataclasses.replace(row.pair, chosen=chosen, rejected=rejected)


def _edit(value: Any, edit: Callable[[str], str], *, whole: bool) -> Any:
    """The field with its answer edited; None if it stays, or if nothing would be left.

    whole  the text is an answer. Where it begins with the prompt, only its end may change.
    """
    if isinstance(value, str):
        new = edit(value)
        if not whole and not value.startswith(new):
            return None
        return new if new != value and new.strip() else None
    *before, last = value
    content = _edit(last["content"], edit, whole=True)
    return None if content is None else [*before, {**last, "content": content}]
