"""From a data set to the rows that rules see, one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from typing import Any

from conviction.auditing.row import AuditRow, form_of
from conviction.core.protocols import Progress
from conviction.data.assembly import assemble
from conviction.data.columns import NO_COLUMNS, Layout, RowError, find_layout
from conviction.data.formats import FORMATS, filled_columns, find_format, parse_pair, refuse_media
from conviction.data.rows import Broken, NumberedRow, Source
from conviction.data.training_data import TrainingData
from conviction.errors import InputError

PEEK = 200
"""Rows that say which columns there are, and whether all must have a prompt of their own."""


def rows_of_source(
    source: Source, progress: Progress | None = None, columns: Mapping[str, str] = NO_COLUMNS
) -> tuple[Layout, Iterator[AuditRow]]:
    """How the columns are read, and all rows, usable or not; memory for one at a time.

    ``columns`` maps fields to columns of other names. Raises InputError if none of the first rows
    can be read, or if they hold no preference pairs: which columns were found, and which formats there are.
    """
    rows = source.rows(progress)
    first = list(islice(rows, PEEK))
    if not first:
        raise InputError(f"{source.where}: holds no rows", hint=FORMATS)
    readable = [row for row in first if isinstance(row, NumberedRow)]
    if not readable:
        raise next(row for row in first if isinstance(row, Broken)).error(source.where)
    layout = find_layout(filled_columns(row.fields for row in readable), columns, source.where)
    field, _ = find_format(layout, source.where)
    if field != "pairs":
        raise InputError(
            f"{source.where}: holds {field}, not preference pairs; found: {', '.join(layout.columns[:12])}",
            hint="an audit is of pairs: rows of chosen + rejected, with or without prompt",
        )
    use = partial(_usable, source.name, layout=layout)
    all_rows = chain(_emptied(first), rows)
    return layout, (_unusable(row) if isinstance(row, Broken) else use(row) for row in all_rows)


def _emptied(rows: list[NumberedRow | Broken]) -> Iterator[NumberedRow | Broken]:
    """One by one, keeping none."""
    rows.reverse()
    while rows:
        yield rows.pop()


def _unusable(row: Broken) -> AuditRow:
    return AuditRow(row.number, {}, None, problem=row.problem, hint=row.hint, record=row.record)


def _usable(name: str, row: NumberedRow, *, layout: Layout) -> AuditRow:
    made = AuditRow(row.number, row.fields, None, layout=layout, record=row.record)
    try:
        refuse_media(layout.fields(row.fields))
        fields = assemble(row.fields, layout)
        # a prompt that only late rows have is still theirs; PD102 tells of the mixture
        pair = parse_pair(f"{name}:{row.number}", fields, prompted="prompt" in layout.has)
    except RowError as error:
        problem, hint = layout.named(error).args
        return replace(made, problem=problem, hint=hint)
    return replace(made, pair=pair, form=form_of(fields))


def reread(row: AuditRow, fields: dict[str, Any]) -> AuditRow | None:
    """A usable row with other fields; None if they hold no pair, or another conversation."""
    try:
        pair = parse_pair(row.pair.id if row.pair else "", assemble(fields, row.layout), prompted=False)
    except RowError:
        return None
    return replace(row, fields=fields, pair=pair) if row.pair and pair.messages == row.pair.messages else None


def rows_of_training_data(training_data: TrainingData) -> Iterator[AuditRow]:
    """The pairs of training data that was read already, counted from 1."""
    for number, pair in enumerate(training_data.pairs, start=1):
        fields: dict[str, Any] = {"prompt": pair.messages, "chosen": pair.chosen, "rejected": pair.rejected}
        yield AuditRow(number, fields, pair, "texts")
