"""Rows of Parquet files (pyarrow), and of saved folders and hub data sets (the ``datasets`` library)."""

from __future__ import annotations

import errno
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from conviction.core.gate import is_file, read_json
from conviction.core.names import inside
from conviction.core.protocols import Progress
from conviction.core.storage import cache_dir, storage_errors
from conviction.errors import ConvictionError, InputError, first_line, nearest

Row = dict[str, Any]

_DISK = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)
_BATCH = 1000


def read_parquet(path: Path, progress: Progress | None) -> Iterator[Row]:
    """A Parquet file, by batches."""
    with _tables(str(path), "check that it is a whole Parquet file"):
        table = import_module("pyarrow.parquet").ParquetFile(path)
        yield from _table_rows(table.iter_batches(_BATCH), table.metadata.num_rows, progress)


def _table_rows(batches: Iterable[Any], total: int, progress: Progress | None) -> Iterator[Row]:
    """Rows of pyarrow's batches: nothing is decoded, an image stays the bytes that it is."""
    done = 0
    for batch in batches:
        rows = batch.to_pylist()
        yield from rows
        done += len(rows)
        if progress is not None:
            progress(done, total)


def read_saved(folder: Path, split: str, progress: Progress | None) -> Iterator[Row]:
    """A folder as ``save_to_disk`` leaves it, whose tables lie in it."""
    _check_places(folder)
    with _tables(str(folder), "save it again with save_to_disk"):
        with _datasets() as datasets:
            data = datasets.load_from_disk(str(folder))
            if isinstance(data, datasets.DatasetDict):
                _check_split(split, list(data), str(folder))
                data = data[split]
            else:
                _check_split(split, list(dict.fromkeys((str(data.split or "train"), "train"))), str(folder))
        yield from _table_rows(data.with_format("arrow").iter(_BATCH), len(data), progress)


def _check_places(folder: Path) -> None:
    """Raise InputError where the folder's own lists name splits or tables outside of it."""
    hint = "save it again with save_to_disk"
    splits: Any = []
    if is_file(folder / "dataset_dict.json"):
        names = read_json(folder / "dataset_dict.json", InputError, hint=hint)
        splits = names.get("splits", []) if isinstance(names, dict) else []
    for place in (".", *(splits if isinstance(splits, list) else [])):
        own = inside(folder, place, "a split", InputError)
        if not is_file(own / "state.json"):
            continue
        state = read_json(own / "state.json", InputError, hint=hint)
        tables = state.get("_data_files", []) if isinstance(state, dict) else []
        for table in tables if isinstance(tables, list) else []:
            inside(own, table.get("filename") if isinstance(table, dict) else table, "a table", InputError)


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
        yield from _table_rows(data.with_format("arrow").iter(_BATCH), len(data), progress)


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
    """What pyarrow and datasets say, in our words."""
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
