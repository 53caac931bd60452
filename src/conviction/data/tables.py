"""Rows of Parquet files and saved folders (pyarrow), and of hub data sets (the ``datasets`` library)."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import IO, Any, TypeVar

from pydantic import BaseModel, Field

from conviction.core.gate import UNPACKED_BYTES, UNPACKED_TIMES, is_file, open_file, read_json, validate
from conviction.core.names import inside
from conviction.core.protocols import Progress
from conviction.core.storage import cache_dir, storage_errors
from conviction.core.wording import printable
from conviction.data import tables_worker
from conviction.errors import ConvictionError, InputError, first_line, nearest, out_of_memory

Row = dict[str, Any]

_DISK = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)
_BATCH = 1000
_SAVE_AGAIN = "save it again with save_to_disk"


def read_parquet(path: Path, progress: Progress | None) -> Iterator[Row]:
    """A Parquet file, by batches."""
    return _unpacked("parquet", path, "check that it is a whole Parquet file", progress)


def _unpacked(kind: str, path: Path, hint: str, progress: Progress | None) -> Iterator[Row]:
    """Rows of a file, which a process of its own unpacks within its limits (``tables_worker``).

    Nothing is decoded, an image stays the bytes that it is.
    """
    with open_file(path, InputError) as file:  # no FIFO, and nothing else that is waited for
        most = max(UNPACKED_BYTES, UNPACKED_TIMES * os.fstat(file.fileno()).st_size)
    done, total = 0, None
    with _worker({"kind": kind, "file": str(path.resolve()), "most": most, "path": sys.path}) as answers:
        pyarrow = import_module("pyarrow")  # while the process starts, which needs it as well
        while not (line := json.loads(answers.readline() or b"{}")).get("end"):
            if "rows" in line:
                total = line["rows"]
            elif "batch" in line:
                rows = _plain(pyarrow, answers.read(line["batch"]), path, hint)
                yield from rows
                done += len(rows)
                if progress is not None:
                    progress(done, total or done)
            else:
                problem = line.get("error", "it is damaged: what unpacked it came to an end")
                raise InputError(f"{printable(path)}: {printable(problem)}", hint=hint)


def _plain(pyarrow: Any, content: bytes, path: Path, hint: str) -> list[Row]:
    """Rows of an Arrow stream. Raises InputError for what Python has no value of, such as a date of the year 20000."""
    try:
        rows: list[Row] = pyarrow.ipc.open_stream(content).read_all().to_pylist()
    except Exception as error:
        if out_of_memory(error):
            raise
        raise InputError(f"{printable(path)}: {printable(first_line(error))}", hint=hint) from error
    return rows


@contextmanager
def _worker(settings: dict[str, Any]) -> Iterator[IO[bytes]]:
    """What the process answers, which is ended with the block."""
    command = [sys.executable, "-I", "-S", str(Path(tables_worker.__file__))]
    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
    environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"}  # others reserve addresses, which are limited
    try:
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nowhere, env=environment)
    except OSError as error:
        hint = "close other programs, or raise the limit on processes"
        raise InputError(f"no process can be started to unpack {settings['file']} ({error})", hint=hint) from error
    with process:
        try:
            assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018  they are pipes
            process.stdin.write(json.dumps(settings).encode() + b"\n")
            process.stdin.flush()
            yield process.stdout
        finally:
            process.kill()


def read_saved(folder: Path, split: str, progress: Progress | None) -> Iterator[Row]:
    """A folder as ``save_to_disk`` leaves it, whose tables lie in it."""
    place, own = folder / "dataset_dict.json", folder
    if is_file(place):
        known = _record(_Splits, place)
        places = {name: inside(folder, name, "a split", InputError) for name in known.splits}
        _check_split(split, list(places), str(folder))
        own = places[split]
    place = own / "state.json"
    state = _record(_State, place)
    if own == folder:
        _check_split(split, list(dict.fromkeys((state.split or "train", "train"))), str(folder))
    for table in state.tables:
        yield from _unpacked("arrow", inside(own, table.filename, "a table", InputError), _SAVE_AGAIN, progress)


Record = TypeVar("Record", bound=BaseModel)


def _record(kind: type[Record], path: Path) -> Record:
    return validate(kind, read_json(path, InputError, hint=_SAVE_AGAIN), printable(path), InputError, hint=_SAVE_AGAIN)


class _Splits(BaseModel):
    """The file ``dataset_dict.json``."""

    splits: list[str]


class _Table(BaseModel):
    filename: str


class _State(BaseModel):
    """The file ``state.json``, as far as it is read."""

    tables: list[_Table] = Field(alias="_data_files")
    split: str | None = Field(default=None, alias="_split")


def _check_split(split: str, known: list[str], where: str) -> None:
    if split not in known:
        raise InputError(
            f"{where}: there is no split '{split}'", hint=f"{nearest(split, known)}splits: {', '.join(known)}"
        )


def read_hub(name: str, split: str, progress: Progress | None) -> Iterator[Row]:
    """A data set on the hub, downloaded whole into our cache by the first call."""
    hint = (
        "check the name, the split and the network (`hf auth login` for one that needs consent), or give a local file"
    )
    with _tables(f"data set '{name}' on the hub", hint):
        with _datasets() as datasets:
            data = datasets.load_dataset(name, split=split, cache_dir=str(cache_dir() / "datasets"))
        for number, batch in enumerate(data.with_format("arrow").iter(_BATCH)):
            if progress is not None and number:
                progress(number * _BATCH, len(data))
            yield from batch.to_pylist()


@contextmanager
def _datasets() -> Iterator[Any]:
    """The datasets library, without progress bars, log lines and warnings."""
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
    finally:
        log.set_verbosity(level)
        for library in silenced:
            library.enable_progress_bars()


@contextmanager
def _tables(what: str, hint: str) -> Iterator[None]:
    """What the datasets library says, in our words."""
    try:
        yield
    except (ConvictionError, GeneratorExit):
        raise
    except Exception as error:
        cause = error.__cause__ or error
        if isinstance(cause, OSError) and cause.errno in _DISK:
            with storage_errors(f"reading {what} through {cache_dir() / 'datasets'}"):
                raise cause from error
        raise InputError(f"{what}: {first_line(cause)}", hint=hint) from error
