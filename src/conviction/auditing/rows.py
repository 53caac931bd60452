"""From a data set to the rows that rules see, one by one."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

from conviction.auditing.row import AuditRow, form_of
from conviction.core.protocols import Progress
from conviction.data.formats import FORMATS, RowError, filled_columns, find_format, parse_pair, refuse_media
from conviction.data.rows import Broken, NumberedRow, Source
from conviction.data.training_data import TrainingData
from conviction.errors import InputError

PEEK = 200
"""Rows that say which columns there are, and whether all must have a prompt of their own."""


def rows_of_source(source: Source, progress: Progress | None = None) -> Iterator[AuditRow]:
    """All rows, usable or not; memory for one at a time.

    Raises InputError if none of the first rows can be read, or if they hold no
    preference pairs: which columns were found, and which formats there are.
    """
    rows = source.rows(progress)
    first = list(islice(rows, PEEK))
    if not first:
        raise InputError(f"{source.where}: holds no rows", hint=FORMATS)
    readable = [row for row in first if isinstance(row, NumberedRow)]
    if not readable:
        raise next(row for row in first if isinstance(row, Broken)).error(source.where)
    columns = filled_columns(row.fields for row in readable)
    field, _ = find_format(columns, source.where)
    if field != "pairs":
        raise InputError(
            f"{source.where}: holds {field}, not preference pairs; found: {', '.join(columns[:12])}",
            hint="an audit is of pairs: rows of chosen + rejected, with or without prompt",
        )
    prompted = "prompt" in columns
    return (_audit_row(source.name, row, prompted=prompted) for row in chain(_emptied(first), rows))


def _emptied(rows: list[NumberedRow | Broken]) -> Iterator[NumberedRow | Broken]:
    """One by one, keeping none."""
    rows.reverse()
    while rows:
        yield rows.pop()


def _audit_row(name: str, row: NumberedRow | Broken, *, prompted: bool) -> AuditRow:
    if isinstance(row, Broken):
        return AuditRow(row.number, {}, None, problem=row.problem, hint=row.hint)
    fields = row.fields
    try:
        refuse_media(fields)
        # a prompt that only late rows have is still theirs; PD102 tells of the mixture
        pair = parse_pair(f"{name}:{row.number}", fields, prompted=prompted or fields.get("prompt") is not None)
    except RowError as error:
        return AuditRow(row.number, fields, None, problem=error.args[0], hint=error.args[1])
    return AuditRow(row.number, fields, pair, form_of(fields))


def reread(row: AuditRow, fields: dict[str, Any]) -> AuditRow | None:
    """A usable row with other fields; None if they hold no pair, or another conversation."""
    try:
        pair = parse_pair(row.pair.id if row.pair else "", fields, prompted=fields.get("prompt") is not None)
    except RowError:
        return None
    same = row.pair is not None and pair.messages == row.pair.messages
    return AuditRow(row.number, fields, pair, row.form) if same else None


def rows_of_training_data(training_data: TrainingData) -> Iterator[AuditRow]:
    """The pairs of training data that was read already, counted from 1."""
    for number, pair in enumerate(training_data.pairs, start=1):
        fields: dict[str, Any] = {"prompt": pair.messages, "chosen": pair.chosen, "rejected": pair.rejected}
        yield AuditRow(number, fields, pair, "texts")
