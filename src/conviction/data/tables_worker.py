"""The process that Parquet and Arrow files are unpacked in: it has a limit on memory, and ends with a broken file.

It is started as a script by ``tables``, knows only the standard library and pyarrow, and answers in lines of JSON:
``{"rows": N}``, then ``{"batch": BYTES}`` with a plain Arrow stream of so many bytes behind it, again and again, then
``{"end": true}``; or ``{"error": TEXT}`` at any point. A few kilobytes can stand for any number of gigabytes (one long
value in a dictionary, named a million times; prefixes; null columns), and what a file says of its own sizes may be
untrue: so what is unpacked is counted, and the operating system bounds what a single operation takes.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Iterator
from typing import Any

BYTES = 2 * 2**30
"""Of the process, all its code included; Windows and macOS do not keep to it."""
BATCH = 1000
"""Rows that are unpacked together."""
MOST_COLUMNS, MOST_ROWS = 10_000, 50_000_000
VALUE = 8
"""What any value counts, in bytes: one that is null, or one bit, is an object in Python."""


class TooMuch(Exception):  # noqa: N818
    """A file unpacks to more than it may."""


def check_size(rows: int, columns: int) -> None:
    """Raise TooMuch for what a file itself says of its table."""
    if columns > MOST_COLUMNS:
        raise TooMuch(f"it has {columns:,} columns, more than {MOST_COLUMNS:,}")
    if rows > MOST_ROWS:
        raise TooMuch(f"it has {rows:,} rows, more than {MOST_ROWS:,}")


def parquet(path: str, most: int) -> tuple[int, Any, Iterator[Any]]:
    """Rows, schema and batches of a Parquet file."""
    from pyarrow.parquet import ParquetFile

    file = ParquetFile(path, buffer_size=2**20, pre_buffer=False)
    known = file.metadata
    check_size(known.num_rows, known.num_columns)
    unpacked = sum(known.row_group(number).total_byte_size for number in range(known.num_row_groups))
    if unpacked > most:
        raise TooMuch(f"its pages unpack to {unpacked:,} bytes, more than {most:,}")
    return known.num_rows, file.schema_arrow, file.iter_batches(BATCH, use_threads=False)


def arrow(path: str, _most: int) -> tuple[int | None, Any, Iterator[Any]]:
    """The same of a file as ``save_to_disk`` writes it; how many rows it has is not written in it."""
    import pyarrow as pa

    reader = pa.ipc.open_stream(pa.memory_map(path))
    check_size(0, len(reader.schema))
    return None, reader.schema, (part.slice(at, BATCH) for part in reader for at in range(0, part.num_rows, BATCH))


def cost(array: Any) -> int:
    """Bytes of an array's values with all within them, written out, each of which counts ``VALUE`` at least."""
    import pyarrow as pa
    from pyarrow import types

    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        return cost(array.storage)
    if types.is_dictionary(kind):
        return cost(array.dictionary_decode())
    if types.is_string_view(kind) or types.is_binary_view(kind):  # many may show the same bytes
        return cost(array.cast(pa.large_binary()))
    if types.is_struct(kind):
        parts = array.flatten()
    elif types.is_map(kind):
        first, last = array.offsets[0].as_py(), array.offsets[-1].as_py()
        parts = [part.slice(first, last - first) for part in (array.keys, array.items)]
    elif types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        parts = [array.flatten()]
    elif types.is_nested(kind) or types.is_run_end_encoded(kind):
        raise TooMuch(f"values of type {kind} are not read")
    else:
        return len(array) * VALUE + int(array.nbytes)
    return len(array) * VALUE + sum(map(cost, parts))


def send(kind: str, path: str, most: int) -> None:
    """Write a file's rows to stdout. most: what they may cost together."""
    import pyarrow as pa

    rows, schema, batches = {"parquet": parquet, "arrow": arrow}[kind](path, most)
    say(rows=rows)
    spent = 0
    for batch in batches:
        batch.validate(full=True)  # offsets of a stranger may lie anywhere, and texts may be none
        spent += len(batch) * VALUE + sum(map(cost, batch.columns))
        if spent > most:
            raise TooMuch(f"it unpacks to more than {most:,} bytes")
        stream = pa.BufferOutputStream()
        with pa.ipc.new_stream(stream, schema) as writer:
            writer.write_batch(batch)
        content = stream.getvalue()
        say(batch=content.size)
        sys.stdout.buffer.write(content)
    say(end=True)


def say(**line: Any) -> None:
    """One line of JSON on stdout."""
    sys.stdout.buffer.write(json.dumps(line).encode() + b"\n")
    sys.stdout.buffer.flush()


def import_pyarrow() -> None:
    """Import it before the limit; without NumPy, which nothing here needs, in half the time."""
    sys.modules["numpy"] = None  # type: ignore[assignment]  # what Python takes for a package that is not there
    import pyarrow.ipc
    import pyarrow.parquet  # noqa: F401


def main() -> None:
    """Read what is asked for from stdin, one line of JSON, and send it."""
    settings = json.loads(sys.stdin.buffer.readline())
    sys.path[:] = settings["path"]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes of a terminal; stdout is then closed
    import_pyarrow()

    with contextlib.suppress(ImportError, ValueError, OSError):  # not on Windows, and macOS may refuse
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a broken file may end this process
    try:
        send(settings["kind"], settings["file"], settings["most"])
    except BrokenPipeError:
        sys.stdout = None  # whoever asked needs no more
    except (TooMuch, MemoryError) as error:
        say(error=str(error) if isinstance(error, TooMuch) else f"a part of it takes more than {BYTES // 2**30} GB")
    except Exception as error:  # a stranger's file fails in any way
        say(error=(str(error).strip().splitlines() or [type(error).__name__])[0][:1000])


if __name__ == "__main__":
    main()
