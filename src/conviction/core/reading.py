"""Material from files, folders and the hub.

JSON, CSV and text files are read here, with the standard library, so that every
text arrives as written and every error names its line: the ``datasets`` library
turns a JSON answer that looks like a date into a time, shifts the columns of a
ragged CSV, and copies each file into its cache. Parquet files, folders that it
saved, and the hub are its own, and read through it.
"""

from __future__ import annotations

import csv
import errno
import gzip
import json
import os
import re
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

from conviction.core.material import FIELDS, FORMATS, MEDIA, Material, material_from_rows, paragraphs
from conviction.core.storage import cache_dir, storage_errors, user_path
from conviction.errors import ConvictionError, InputError, nearest

__all__ = ["read_material"]

Rows = list[dict[str, Any]]
Numbered = tuple[list[int], Rows]
"""Rows, and the line or row number of each."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_MARKS = ("dataset_dict.json", "dataset_info.json")
"""Files that say a folder was written by ``save_to_disk``."""
_DISK = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)


def read_material(source: str | Path, *, split: str = "train") -> Material:
    """The material in a file, a folder or a data set on the hub.

    ::

        pairs.jsonl, .json, .csv, .tsv   rows, see material_from_rows; .gz of these too
        pairs.parquet                    the same
        notes.txt, notes.txt.gz          a document for every paragraph
        folder                           of train.jsonl, valid.jsonl, test.jsonl (or another of these
                                         endings), or as Dataset.save_to_disk leaves it
        org/name                         a data set on the hub, if there is no such path

    ``split`` chooses within folders and hub data sets. The network is used for a
    hub name only. Raises InputError, naming file, line and field.
    """
    path = user_path(source)
    if os.path.isdir(path):
        return _read_folder(path, split)
    if os.path.isfile(path):
        if split != "train":
            raise InputError(
                f"{path} is one file, it has no split '{split}'", hint="leave the split out, or name that split's file"
            )
        return _read_file(path, path.name)
    if isinstance(source, str) and _is_hub_name(source):
        return _read_hub(source, split)
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


def _read_file(path: Path, name: str) -> Material:
    ending = _ending(path)
    if ending is None:
        raise InputError(
            f"{path}: cannot be read, its ending is none that is known",
            hint=f"{nearest(path.suffix, _READERS)}use one of: {', '.join(_READERS)} (.gz of all but Parquet)",
        )
    numbers, rows = _READERS[ending](path)
    return material_from_rows(rows, name=name, where=str(path), numbers=numbers)


def _read_folder(folder: Path, split: str) -> Material:
    """A folder of one file per split, or one that ``datasets`` saved."""
    if any(os.path.isfile(folder / mark) for mark in _MARKS):
        return _read_saved(folder, split)
    files = [p for p in _inside(folder) if os.path.isfile(p) and _ending(p)]
    wanted = {split, {"valid": "validation", "validation": "valid"}.get(split, split)}
    found = [p for p in files if p.name.split(".")[0] in wanted]
    if len(found) == 1:
        return _read_file(found[0], f"{folder.resolve().name}/{found[0].name}")
    if found:
        raise InputError(
            f"{folder}: split '{split}' stands in {' and '.join(p.name for p in found)}", hint="give one of these files"
        )
    raise InputError(
        f"{folder}: holds no {split}.jsonl; found: {', '.join(p.name for p in files[:8]) or 'no data file'}",
        hint="give a file by its name, or a folder with train.jsonl, valid.jsonl and test.jsonl",
    )


def _inside(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


# files read here


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what can go wrong with the bytes of a file into an InputError."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not a whole gzip file ({error})", hint="copy or download the file again") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}", hint="check that the file can be read") from error


def _lines(path: Path) -> Iterator[str]:
    """Lines with their ends. Cut at line feeds only: U+2028 and its like may stand within a text."""
    with _reading(path), gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path}:{number}: not UTF-8 (byte {error.start} of the line)", hint="save the file as UTF-8"
                ) from error


def _read_json(path: Path) -> Numbered:
    """One object a line, or one list of objects."""
    numbers: list[int] = []
    rows: Rows = []
    lines = _lines(path)
    for number, line in enumerate(lines, start=1):
        if not rows and line.lstrip().startswith("["):
            return _read_json_list("\n" * (number - 1) + line + "".join(lines), path)
        if line.strip():
            numbers.append(number)
            rows.append(_as_row(_parse_json(line, path, number), path, number))
    return numbers, rows


def _read_json_list(text: str, path: Path) -> Numbered:
    values = _parse_json(text, path, 1)
    return list(range(1, len(values) + 1)), [_as_row(value, path, i) for i, value in enumerate(values, start=1)]


def _parse_json(text: str, path: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{path}:{line + error.lineno - 1}"
        problem = f"{error.msg}, column {error.colno}"
    except (ValueError, RecursionError) as error:  # a number of too many digits, too deep a nesting
        where, problem = f"{path}:{line}", str(error)
    raise InputError(f"{where}: not JSON ({problem})", hint="write one JSON object a line, or one list of objects")


def _as_row(value: Any, path: Path, number: int) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{path}:{number}: a {type(value).__name__}, not an object with fields", hint=FORMATS)
    return value


def _read_csv(path: Path) -> Numbered:
    """Every cell is a text as it stands; a row's number is the line that it begins at."""
    (_, header), *records = _csv_records(path) or [(1, [])]
    twice = [f for f in FIELDS if header.count(f) > 1]
    if twice:
        raise InputError(f"{path}:1: column '{twice[0]}' stands there twice", hint="rename or remove one of them")
    for number, cells in records:
        if len(cells) != len(header):
            raise InputError(
                f"{path}:{number}: {len(cells)} cells, the header has {len(header)}",
                hint='put a text with commas, quotes or line breaks into "…", and double the quotes within it',
            )
    rows = [dict(zip(header, cells, strict=True)) for _, cells in records]
    for (number, _), row in zip(records, rows, strict=True):
        if any(row.get(field, "").startswith("[{") for field in ("prompt", "completion", "chosen", "messages")):
            raise InputError(
                f"{path}:{number}: a list of messages, written as text",
                hint="CSV holds plain texts only: save message lists as .jsonl or .parquet",
            )
    return [number for number, _ in records], rows


def _csv_records(path: Path) -> list[tuple[int, list[str]]]:
    """Records that are not blank, the header first; separated by comma, semicolon or tab, as the header is."""
    lines = _lines(path)
    first = next(lines, "")
    reader = csv.reader(chain([first], lines), delimiter=max(",;\t", key=first.count), strict=True)
    found: list[tuple[int, list[str]]] = []
    begin = 1
    limit = csv.field_size_limit(2**31 - 1)
    try:
        for cells in reader:
            if cells:
                found.append((begin, cells))
            begin = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}:{begin}: not CSV ({error})", hint='a quote within "…" is written twice') from error
    finally:
        csv.field_size_limit(limit)
    return found


def _read_text(path: Path) -> Numbered:
    blocks = paragraphs("".join(_lines(path)).replace("\r\n", "\n"))
    return [number for number, _ in blocks], [{"text": text} for _, text in blocks]


# what the datasets library reads


def _read_parquet(path: Path) -> Numbered:
    with _reading(path), path.open("rb"):
        pass  # whether one may
    with _datasets(str(path), "check that it is a whole Parquet file") as datasets:
        if not import_module("pyarrow.parquet").read_metadata(path).num_rows:
            return [], []  # where from_parquet speaks of batch sizes
        return _rows_of(datasets.Dataset.from_parquet(str(path), cache_dir=str(cache_dir() / "datasets")))


def _read_saved(folder: Path, split: str) -> Material:
    with _datasets(str(folder), "save it again with save_to_disk") as datasets:
        data = datasets.load_from_disk(str(folder))
        name = folder.resolve().name
        if isinstance(data, datasets.DatasetDict):
            _check_split(split, list(data), str(folder))
            data, name, folder = data[split], f"{name}/{split}", folder / split
        else:
            _check_split(split, list(dict.fromkeys((str(data.split or "train"), "train"))), str(folder))
        numbers, rows = _rows_of(data)
    return material_from_rows(rows, name=name, where=str(folder), numbers=numbers)


def _check_split(split: str, known: list[str], where: str) -> None:
    if split not in known:
        raise InputError(
            f"{where}: there is no split '{split}'", hint=f"{nearest(split, known)}splits: {', '.join(known)}"
        )


def _read_hub(name: str, split: str) -> Material:
    hint = (
        "check the name, the split and the network (`hf auth login` for one that needs consent), or give a local file"
    )
    with _datasets(f"data set '{name}' on the hub", hint) as datasets:
        numbers, rows = _rows_of(datasets.load_dataset(name, split=split, cache_dir=str(cache_dir() / "datasets")))
    return material_from_rows(rows, name=name, numbers=numbers)


@contextmanager
def _datasets(what: str, hint: str) -> Iterator[Any]:
    """The datasets library, without progress bars, log lines and warnings; its errors in our words."""
    datasets, hub = import_module("datasets"), import_module("huggingface_hub.utils")
    log = datasets.utils.logging
    level = log.get_verbosity()
    silenced = [library for library in (datasets, hub) if not library.are_progress_bars_disabled()]
    try:
        log.set_verbosity(log.CRITICAL)
        for library in silenced:
            library.disable_progress_bars()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield datasets
    except ConvictionError:
        raise
    except Exception as error:
        cause = error.__cause__ or error
        if isinstance(cause, OSError) and cause.errno in _DISK:
            with storage_errors(f"reading {what} through {cache_dir() / 'datasets'}"):
                raise cause from error
        said = str(cause).strip() or type(cause).__name__
        raise InputError(f"{what}: {said.splitlines()[0]}", hint=hint) from error
    finally:
        log.set_verbosity(level)
        for library in silenced:
            library.enable_progress_bars()


def _rows_of(data: Any) -> Numbered:
    """Rows of a Dataset: texts as they are, of images and tools only whether there are any, of the rest the names."""
    known = [c for c in data.column_names if c in FIELDS]
    columns = data.select_columns(known)[:] if known else {}
    for name in data.column_names:
        if name in MEDIA:
            columns[name] = _is_filled(data, name)
        elif name not in FIELDS:
            columns[name] = [True] * len(data)
    names = [c for c in data.column_names if c in columns]
    rows = [dict(zip(names, values, strict=True)) for values in zip(*(columns[n] for n in names), strict=True)]
    return list(range(1, len(rows) + 1)), rows


def _is_filled(data: Any, name: str) -> list[bool | None]:
    """Per row True or None, without decoding what is there."""
    column = data.with_format("arrow").select_columns([name])[:].column(0)
    return [
        bool(there) or None
        for chunk in column.chunks
        for there in (chunk.value_lengths() if hasattr(chunk, "value_lengths") else chunk.is_valid()).to_pylist()
    ]


_READERS: dict[str, Callable[[Path], Numbered]] = {
    ".jsonl": _read_json,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".txt": _read_text,
    ".parquet": _read_parquet,
}
