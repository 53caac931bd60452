"""Training data from files, folders and the hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conviction.data.columns import EMPTY, MEDIA, NO_COLUMNS, READ
from conviction.data.formats import training_data_from_rows
from conviction.data.rows import Broken, open_source
from conviction.data.topic import Topic, load_topic
from conviction.data.training_data import TrainingData
from conviction.errors import InputError


def read_training_data(
    source: str | Path, *, split: str = "train", columns: Mapping[str, str] = NO_COLUMNS
) -> TrainingData:
    """The training data in a file, a folder or a data set on the hub, as ``open_source`` finds it.

    ``columns`` maps fields to columns of other names, ``{"prompt": "Question"}``; '' leaves a field out. What
    is not read is told in ``notes``. Raises InputError, naming file, line and field: a row that cannot be used is
    never dropped.
    """
    opened = open_source(source, split=split)
    numbers: list[int] = []
    rows: list[Mapping[str, Any]] = []
    records: dict[int, int] = {}
    read = READ | {*columns.values()}
    for row in opened.rows():
        if isinstance(row, Broken):
            raise row.error(opened.where)
        numbers.append(row.number)
        if row.record:
            records[row.number] = row.record
        rows.append({name: value if name in read else _filled(name, value) for name, value in row.fields.items()})
    return training_data_from_rows(
        rows, name=opened.name, where=opened.where, numbers=numbers, columns=columns, records=records
    )


def check_one_source(topic: str | None, data: str | None) -> None:
    """Raise InputError unless exactly one of a topic and data is named."""
    if (topic is None) == (data is None):
        what = "both a topic and data" if topic else "neither a topic nor data"
        raise InputError(f"there is {what}", hint="name a topic, or give --data FILE")


def read_source(topic: str | None, data: str | None, columns: Mapping[str, str] = NO_COLUMNS) -> Topic | TrainingData:
    """The topic or the data of a command line. Raises InputError unless exactly one of them is named."""
    check_one_source(topic, data)
    if topic is not None and columns:
        raise InputError("--columns is given with a topic", hint="it is for --data, whose columns have other names")
    return load_topic(topic) if topic is not None else read_training_data(str(data), columns=columns)


def _filled(name: str, value: Any) -> bool | None:
    """Whether there is anything: of images and tools, of other fields that are not read."""
    filled = value not in EMPTY if name in MEDIA else value is not None
    return True if filled else None
