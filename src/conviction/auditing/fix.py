"""A cleaned copy of a data set: the faults that have a safe repair, and a list of what was changed.

The input is never touched, and rows that no repair concerns keep all their
fields as they were.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conviction.auditing.row import AuditRow
from conviction.auditing.rows import reread, rows_of_source
from conviction.auditing.rule import Rule
from conviction.core.protocols import Progress
from conviction.core.storage import finite_or_null, write_lines_atomic
from conviction.core.wording import counted
from conviction.data.columns import NO_COLUMNS
from conviction.data.rows import Source
from conviction.errors import InputError

UNREADABLE = "unreadable"
SHOWN = 8  # rows that are named for one kind of change


@dataclass(frozen=True)
class Change:
    """What a rule's repair did to one row. did: dropped, edited, or left out because nothing could be read."""

    row: int
    code: str
    did: str


def fixed_path(source: Source) -> Path:
    """Where the copy goes if nothing is named: beside the file or the folder, else into the working directory."""
    name = source.name.replace("/", "-")
    if source.path is not None:
        name = name.removesuffix(".gz")
        name = name.removesuffix(Path(name).suffix)
    inside = "/" in source.name  # of a folder, which a second file for the same split would spoil
    folder = Path() if source.path is None else source.path.resolve().parents[inside]
    return folder / f"{name}.fixed.jsonl"


def write_fixed(
    source: Source,
    target: Path,
    rules: Sequence[Rule],
    progress: Progress | None = None,
    columns: Mapping[str, str] = NO_COLUMNS,
) -> list[Change]:
    """Write the copy as JSONL and return what was changed, in the order of the rows.

    Unusable rows are copied as they are; only those of which nothing could be
    read are left out. Raises InputError if ``target`` exists.
    """
    if os.path.lexists(target):
        raise InputError(f"{target} exists already", hint="move it away, or name another place with --output")
    changes: list[Change] = []
    write_lines_atomic(target, _fixed(source, rules, changes, progress, columns))
    return changes


def _fixed(
    source: Source,
    rules: Sequence[Rule],
    changes: list[Change],
    progress: Progress | None,
    columns: Mapping[str, str],
) -> Iterator[str]:
    drops = [(rule.code, rule.repair.drop()) for rule in rules if rule.repair and rule.repair.drop]
    edits = [(rule.code, rule.repair.edit) for rule in rules if rule.repair and rule.repair.edit]
    for row in rows_of_source(source, progress, columns)[1]:
        if row.pair is None:
            if row.fields:
                yield _line(row)
            else:
                changes.append(Change(row.number, UNREADABLE, "left out"))
            continue
        cleaned, edited = _edited(row, edits)
        # every predicate sees every row, so that what one drops does not hide it from the next
        dropped = [code for code, drop in drops if drop(cleaned)]
        if dropped:
            changes.append(Change(row.number, dropped[0], "dropped"))
            continue
        changes += [Change(row.number, code, f"edited {side}") for code, side in edited]
        yield _line(cleaned)


def _line(row: AuditRow) -> str:
    """A row's fields as JSON; with escapes where a text holds half a character, which no file can."""
    try:
        text = json.dumps(row.fields, ensure_ascii=False, allow_nan=False, default=_plain)
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(row.fields, allow_nan=False, default=_plain)
    except ValueError:  # NaN and infinity are no JSON
        text = json.dumps(finite_or_null(row.fields), default=_plain)
    return text + "\n"


def _plain(value: Any) -> str:
    if isinstance(value, bytes):
        raise InputError(
            "a field holds bytes, which JSONL cannot", hint="remove the column, or clean the data without --fix"
        )
    return str(value)  # dates, decimals


Edits = Sequence[tuple[str, Callable[[str], str]]]


def _edited(row: AuditRow, edits: Edits) -> tuple[AuditRow, list[tuple[str, str]]]:
    """The row after all edits that change an answer and nothing else, and which they were: (code, side)."""
    done = []
    for side in ("chosen", "rejected"):
        column = row.layout.column(side)
        for code, edit in edits:
            new = _edit(row.fields[column], edit)
            if new == row.fields[column]:
                continue
            after = reread(row, {**row.fields, column: new})
            # else it was a space that the reader ignores, or would move the prompt, or leave no answer
            if after is not None and after.sides != row.sides:
                row = after
                done.append((code, side))
    return row, done


def _edit(value: Any, edit: Callable[[str], str]) -> Any:
    """A field with its answer, the text's end or the last message, edited."""
    if isinstance(value, str):
        return edit(value)
    *before, last = [value] if isinstance(value, dict) else value
    content = "content" if "content" in last else "value"
    last = {**last, content: edit(last[content])}
    return last if isinstance(value, dict) else [*before, last]


def change_lines(changes: Sequence[Change]) -> Iterator[str]:
    """What ``--fix`` did, a line per kind of change."""
    kinds: dict[tuple[str, str], list[int]] = {}
    for change in changes:
        kinds.setdefault((change.code, change.did), []).append(change.row)
    for (code, did), rows in sorted(kinds.items()):
        yield f"{code}: {did} in {counted(len(rows), 'row')}: {_some(rows)}"


def _some(rows: Sequence[int]) -> str:
    more = len(rows) - SHOWN
    return ", ".join(map(str, rows[:SHOWN])) + (f" and {more:,} more" if more > 0 else "")
