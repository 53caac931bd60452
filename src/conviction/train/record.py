"""``steps.jsonl``: one line a step, and what else a run measures of itself."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from conviction.core.storage import storage_errors, write_atomic

__all__ = ["append_record", "cut_records", "numbers_of", "peak_mb", "reset_peak"]


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Add one step's line."""
    with storage_errors(f"writing {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_jsonable(record), ensure_ascii=False, allow_nan=False) + "\n")


def _jsonable(value: Any) -> Any:
    """What is not a number becomes null: JSON has no NaN."""
    if isinstance(value, Mapping):
        return {name: _jsonable(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def cut_records(path: Path, step: int) -> None:
    """Drop the lines of steps that will be taken again."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").split("\n")
        write_atomic(path, "".join(f"{line}\n" for line in lines[:step]))


def peak_mb(device: torch.device) -> int:
    """The most memory that this process has held: of the device, else resident; see ``reset_peak``."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) >> 20
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit >> 20


def reset_peak(device: torch.device) -> None:
    """Let ``peak_mb`` count from now on; where the system cannot, it goes on counting from the start."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux: forget the high-water mark


def numbers_of(record: Mapping[str, Any]) -> dict[str, float]:
    """What a tracker can draw."""
    guard = {f"guard/{name}": value for name, value in record["guard"].items()}
    return {k: v for k, v in {**record, **guard}.items() if isinstance(v, int | float)}
