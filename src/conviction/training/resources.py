"""What a piece of work takes: seconds and memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch


def peak_mb(device: torch.device) -> int:
    """The most memory that this process has held: of the device, else resident; see ``measured``."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) >> 20
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit >> 20


def _reset_peak(device: torch.device) -> None:
    """Let ``peak_mb`` count from now on; where the system cannot, it goes on counting from the start."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux: forget the high-water mark


@dataclass
class Cost:
    """seconds: of the work; peak_mb: the most memory that the process held meanwhile."""

    seconds: float = 0.0
    peak_mb: int = 0


@contextmanager
def measured(device: torch.device) -> Iterator[Cost]:
    """Measure the block; the numbers are there after it."""
    _reset_peak(device)
    cost, started = Cost(), time.perf_counter()
    yield cost
    cost.seconds, cost.peak_mb = time.perf_counter() - started, peak_mb(device)
