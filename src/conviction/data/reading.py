"""Training data from files, folders and the hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conviction.data.facts import FACT_FIELDS
from conviction.data.formats import FIELDS, MEDIA, training_data_from_rows
from conviction.data.rows import Broken, open_source
from conviction.data.topic import Topic, load_topic
from conviction.data.training_data import TrainingData
from conviction.errors import InputError


def read_training_data(source: str | Path, *, split: str = "train") -> TrainingData:
    """The training data in a file, a folder or a data set on the hub, as ``open_source`` finds it.

    Raises InputError, naming file, line and field: a row that cannot be used is
    never dropped.
    """
    opened = open_source(source, split=split)
    numbers: list[int] = []
    rows: list[Mapping[str, Any]] = []
    for row in opened.rows():
        if isinstance(row, Broken):
            raise row.error(opened.where)
        numbers.append(row.number)
        rows.append({name: _needed(name, value) for name, value in row.fields.items()})
    return training_data_from_rows(rows, name=opened.name, where=opened.where, numbers=numbers)


def check_one_source(topic: str | None, data: str | None) -> None:
    """Raise InputError unless exactly one of a topic and data is named."""
    if (topic is None) == (data is None):
        what = "both a topic and data" if topic else "neither a topic nor data"
        raise InputError(f"there is {what}", hint="name a topic, or give --data FILE")


def read_source(topic: str | None, data: str | None) -> Topic | TrainingData:
    """The topic or the data of a command line. Raises InputError unless exactly one of them is named."""
    check_one_source(topic, data)
    return load_topic(topic) if topic is not None else read_training_data(str(data))


def _needed(name: str, value: Any) -> Any:
    """Texts as they are; of images and tools whether there are any, of other fields whether they are filled."""
    if name in FIELDS or name in FACT_FIELDS:
        return value
    filled = value not in (None, [], {}, "") if name in MEDIA else value is not None
    return True if filled else None
