"""Rows of files, folders and the hub, one by one, as they come from the disk.

JSON, CSV and text files are read here, with the standard library, so that every
text arrives as written and every fault names its line: the ``datasets`` library
turns a JSON answer that looks like a date into a time, shifts the columns of a
ragged CSV, and copies each file into its cache. Parquet, saved data sets and the
hub are ``data.tables``.

A row that cannot be read arrives as ``Broken``, and the next one follows: who
trains stops at it, who audits goes on.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from conviction.core.gate import json_value
from conviction.core.protocols import Progress
from conviction.core.storage import user_path
from conviction.core.wording import printable
from conviction.data.columns import FIELDS
from conviction.data.formats import FORMATS
from conviction.data.shards import find_shards
from conviction.data.tables import read_hub, read_parquet, read_saved
from conviction.data.text_lines import not_utf8, read_lines, whole_text
from conviction.data.training_data import paragraphs
from conviction.errors import InputError, nearest

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_MARKS = ("dataset_dict.json", "dataset_info.json")
"""Files that say a folder was written by ``save_to_disk``."""
_LONGEST = 10_000  # lines of a CSV record


@dataclass(frozen=True, slots=True)
class NumberedRow:
    """A row's fields, its line or its place counted from 1, and its record behind cells of several lines, else 0."""

    number: int
    fields: dict[str, Any]
    record: int = 0


@dataclass(frozen=True, slots=True)
class Broken:
    """A row that cannot be read, and what to do about it."""

    number: int
    problem: str
    hint: str
    record: int = 0

    def error(self, where: str) -> InputError:
        """What to raise if one row is one too many."""
        record = f" (record {self.record})" if self.record else ""
        return InputError(f"{where}:{self.number}{record}: {self.problem}", hint=self.hint)


Rows = Iterator[NumberedRow | Broken]


@dataclass(frozen=True)
class Source:
    """Where rows come from.

    name   what ids begin with: ``pairs.jsonl``, ``folder/train.jsonl``, ``org/name``
    where  what errors begin with: the path, or the name on the hub
    path   of the file that is read; None for what ``datasets`` reads
    lines  whether a row's number is its line in a text file
    """

    name: str
    where: str
    path: Path | None
    lines: bool
    read: Callable[[Progress | None], Rows]

    def rows(self, progress: Progress | None = None) -> Rows:
        """From the first row, each time. progress: bytes of a file, rows of a table.

        Raises InputError for what no row can be blamed for: a header, a broken archive.
        """
        return self.read(progress)


def open_source(source: str | Path, *, split: str = "train") -> Source:
    """Rows of a file, a folder or a data set on the hub; nothing is read before they are asked for.

    ::

        pairs.jsonl, .json, .csv, .tsv   one object, or one record, a row; .gz of these too
        pairs.parquet                    the same
        notes.txt, notes.txt.gz          a row for every paragraph
        folder                           of train.jsonl, valid.jsonl, test.jsonl (or another of these
                                         endings), of train-00000-of-00002.parquet and its like, or as
                                         Dataset.save_to_disk leaves it
        org/name                         a data set on the hub, if there is no such path

    ``split`` chooses within folders and hub data sets. The network is used for a
    hub name only. Raises InputError where there is nothing of this name.
    """
    path = user_path(source)
    if os.path.isdir(path):
        return _folder(path, split)
    if os.path.isfile(path):
        if split != "train":
            raise InputError(
                f"{path} is one file, it has no split '{split}'", hint="leave the split out, or name that split's file"
            )
        return _file(path, path.name)
    if os.path.lexists(path):
        raise InputError(f"{printable(path)} is neither a regular file nor a folder", hint="write the rows into a file")
    if isinstance(source, str) and _is_hub_name(source):
        return Source(source, source, None, False, lambda progress: _numbered(read_hub(source, split, progress)))
    raise InputError(
        f"there is no file or folder {source}",
        hint=f"{nearest(path.name, [p.name for p in _inside(path.parent)])}give a file ({', '.join(_READERS)}), "
        "a folder, or a hub name such as org/name",
    )


def _is_hub_name(name: str) -> bool:
    """Whether it can only be meant for the hub: ``org/name``, no data file, and no folder ``org`` here."""
    if _HUB_NAME.fullmatch(name) is None or _ending(Path(name)):
        return False
    return not os.path.isdir(Path(name).parent)


def _ending(path: Path) -> str | None:
    """The ending that says how to read it, without ``.gz``; None if there is no reader."""
    *_, before, last = ["", "", *path.suffixes]
    ending = (before if last.lower() == ".gz" and before.lower() != ".parquet" else last).lower()
    return ending if ending in _READERS else None


def _file(path: Path, name: str) -> Source:
    ending = _ending(path)
    if ending is None:
        raise InputError(
            f"{printable(path)}: cannot be read, its ending is none that is known",
            hint=f"{nearest(path.suffix, _READERS)}use one of: {', '.join(_READERS)} (.gz of all but Parquet)",
        )
    lines = ending != ".parquet" and not (ending in {".json", ".jsonl"} and _is_json_list(path))
    return Source(printable(name), printable(path), path, lines, partial(_READERS[ending], path))


def _folder(folder: Path, split: str) -> Source:
    """A folder of one file per split, or one that ``datasets`` saved."""
    if not os.access(folder, os.R_OK | os.X_OK):
        raise InputError(f"{printable(folder)}: Permission denied", hint="check that the folder can be read")
    if any(os.path.isfile(folder / mark) for mark in _MARKS):
        name, where = folder.resolve().name, folder
        if os.path.isfile(folder / _MARKS[0]):
            name, where = f"{name}/{split}", folder / split
        rows = partial(read_saved, folder, split)
        return Source(printable(name), printable(where), None, False, lambda progress: _numbered(rows(progress)))
    files = [p for p in _inside(folder) if os.path.isfile(p) and _ending(p)]
    wanted = {split, {"valid": "validation", "validation": "valid"}.get(split, split)}
    for inside in (folder, folder / "data"):  # as the hub keeps them
        if shards := find_shards([p for p in _inside(inside) if _ending(p)], wanted):
            name = f"{folder.resolve().name}/{split}"
            return Source(printable(name), printable(folder), None, False, partial(_numbered_on, shards))
    results = [p for p in files if p.name.split(".")[0] in wanted]
    if len(results) == 1:
        return _file(results[0], f"{folder.resolve().name}/{results[0].name}")
    if results:
        raise InputError(
            f"{folder}: split '{split}' stands in {' and '.join(p.name for p in results)}",
            hint="give one of these files",
        )
    raise InputError(
        f"{folder}: holds no {split}.jsonl; found: {', '.join(p.name for p in files[:8]) or 'no data file'}",
        hint="give a file by its name, or a folder with train.jsonl, valid.jsonl and test.jsonl",
    )


def _numbered_on(files: Iterable[Path], progress: Progress | None) -> Rows:
    """The rows of several files, counted through; a fault that is a line's has its line."""
    number = 0
    for path in files:
        for row in _READERS[str(_ending(path))](path, progress):
            number += 1
            yield replace(row, number=number, record=0)


def _inside(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


# text files


_SAVE = "save the file as UTF-8"


def _read_json(path: Path, progress: Progress | None) -> Rows:
    """One object a line, or one list of objects."""
    lines = enumerate(read_lines(path, progress), start=1)
    nothing = True
    for number, line in lines:
        if nothing and line.lstrip().startswith("["):
            rest = (line for _, line in lines)
            yield from _read_json_list("\n" * (number - 1) + whole_text(chain([line], rest), path), path)
            return
        if line.strip():
            nothing = False
            yield _json_row(line, number)


def _is_json_list(path: Path) -> bool:
    """Whether it holds one list, whose rows have places and no lines."""
    try:
        first = next((line for line in read_lines(path, None) if line.strip()), "")
    except InputError:  # whoever reads the rows will be told
        return False
    return first.lstrip().startswith("[")


def _json_row(line: str, number: int) -> NumberedRow | Broken:
    if (problem := not_utf8(line)) is not None:
        return Broken(number, problem, _SAVE)
    try:
        value = json_value(line.rstrip("\r\n"))  # or a fault at its end had column 1
    except (ValueError, RecursionError) as error:
        return Broken(number, f"not JSON ({_said(error)})", _ONE_OBJECT)
    return _as_row(value, number)


def _read_json_list(text: str, path: Path) -> Rows:
    if (problem := not_utf8(text)) is not None:
        raise InputError(f"{printable(path)}: {problem}", hint=_SAVE)
    try:
        values = json_value(text)
    except (ValueError, RecursionError) as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else 1
        raise InputError(f"{printable(path)}:{line}: not JSON ({_said(error)})", hint=_ONE_OBJECT) from error
    yield from (_as_row(value, i) for i, value in enumerate(values, start=1))


_ONE_OBJECT = "write one JSON object a line, or one list of objects"


def _said(error: Exception) -> str:
    """A number of too many digits and too deep a nesting have no column."""
    return f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)


def _as_row(value: Any, number: int) -> NumberedRow | Broken:
    if not isinstance(value, dict):
        return Broken(number, f"a {type(value).__name__}, not an object with fields", FORMATS)
    return NumberedRow(number, value)


def _read_csv(path: Path, progress: Progress | None) -> Rows:
    """Every cell is a text as it stands; a row's number is the line that it begins at."""
    lines = read_lines(path, progress)
    first = next(lines, "")
    records = _csv_records(chain([first], lines), max(",;\t", key=first.count))
    header = next(records, None)
    if header is None:
        return
    if isinstance(header, Broken):
        raise header.error(str(path))
    names = header[1]
    if (problem := not_utf8("".join(names), "header")) is not None:
        raise InputError(f"{printable(path)}:1: {problem}", hint=_SAVE)
    twice = [f for f in FIELDS if names.count(f) > 1]
    if twice:
        raise InputError(
            f"{printable(path)}:1: column '{twice[0]}' stands there twice", hint="rename or remove one of them"
        )
    names = [n if n not in names[:i] else f"{n}.{names[:i].count(n)}" for i, n in enumerate(names)]
    for place, record in enumerate(records, start=1):
        row = record if isinstance(record, Broken) else _csv_row(names, *record)
        yield row if row.number == place + 1 else replace(row, record=place)


def _csv_row(names: list[str], number: int, cells: list[str]) -> NumberedRow | Broken:
    if len(cells) != len(names):
        quoting = 'put a text with commas, quotes or line breaks into "…", and double the quotes within it'
        return Broken(number, f"{len(cells)} cells, the header has {len(names)}", quoting)
    problem = next((p for cell in cells if (p := not_utf8(cell, "cell")) is not None), None)
    if problem is not None:
        return Broken(number, problem, _SAVE)
    row = dict(zip(names, cells, strict=True))
    if any(
        row.get(field, "").startswith("[{") for field in ("prompt", "completion", "chosen", "messages", "conversations")
    ):
        plain = "CSV holds plain texts only: save message lists as .jsonl or .parquet"
        return Broken(number, "a list of messages, written as text", plain)
    return NumberedRow(number, row)


def _csv_records(lines: Iterator[str], delimiter: str) -> Iterator[tuple[int, list[str]] | Broken]:
    """Records that are not blank, each with its first line's number.

    A quote that is never closed takes its own line down, not the rest of the file.
    """
    waiting: deque[str] = deque()
    number = 1
    while (line := waiting.popleft() if waiting else next(lines, None)) is not None:
        taken = [line]
        cells = _csv_parse(taken, delimiter)
        while cells is None and len(taken) < _LONGEST:
            more = waiting.popleft() if waiting else next(lines, None)
            if more is None:
                break
            taken.append(more)
            if '"' in more:  # nothing else can close it
                cells = _csv_parse(taken, delimiter)
        if isinstance(cells, list):
            if cells:
                yield number, cells
            number += len(taken)
            continue
        problem = cells or "unexpected end of data"
        yield Broken(number, f"not CSV ({problem})", 'a quote within "…" is written twice, and every quote is closed')
        waiting.extendleft(reversed(taken[1:]))
        number += 1


def _csv_parse(lines: list[str], delimiter: str) -> list[str] | str | None:
    """The cells of one record; what is wrong with it; None if a quote is still open."""
    limit = csv.field_size_limit(2**31 - 1)
    try:
        return next(csv.reader(lines, delimiter=delimiter, strict=True), [])
    except csv.Error as error:
        return None if "unexpected end" in str(error) else str(error)
    finally:
        csv.field_size_limit(limit)


def _read_text(path: Path, progress: Progress | None) -> Rows:
    text = whole_text(read_lines(path, progress), path).replace("\r\n", "\n")
    for number, block in paragraphs(text):
        problem = not_utf8(block)
        line = number + block[: len(block.encode("ascii", "ignore"))].count("\n") if problem else number
        yield Broken(line, problem, _SAVE) if problem else NumberedRow(number, {"text": block})


def _numbered(rows: Iterable[dict[str, Any]]) -> Rows:
    return (NumberedRow(number, row) for number, row in enumerate(rows, start=1))


_READERS: dict[str, Callable[[Path, Progress | None], Rows]] = {
    ".jsonl": _read_json,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".txt": _read_text,
    ".parquet": lambda path, progress: _numbered(read_parquet(path, progress)),
}
