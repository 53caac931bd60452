"""Will a step fit? An estimate before the first one, so that a run does not die in the middle of a night.

And what becomes of memory that a step has freed: it is kept for the next one.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's names and numbers, malloc.h
LARGEST = 32 * 2**20  # the most that glibc sets the latter to by itself; the former is then twice that

# What a block keeps per token for its backward pass, in units of hidden and of
# inner sizes: norms (x and output, twice), q, k, v, attention's output twice;
# gate and up (with an adapter, a norm's output is not kept: then it is an
# overestimate). Doubled below: measured peaks are 1.8 times this sum on a CPU
# (what the backward pass needs meanwhile, and malloc's gaps).
HIDDEN_UNITS, INNER_UNITS, SAFETY = 9, 2, 2.0


@dataclass(frozen=True)
class Estimate:
    """Bytes that a step takes beyond the loaded weights."""

    activations: int
    trained: int  # gradients, AdamW's moments and the last healthy copy of what is trained

    @property
    def total(self) -> int:
        """Without recomputation."""
        return self.activations + self.trained


def estimate_step(module: Any, *, tokens: int, layers: int, trained_parameters: int, dtype: torch.dtype) -> Estimate:
    """For ``tokens`` in one forward pass through ``layers`` trained layers."""
    config = module.config.get_text_config()
    hidden = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    kept = (HIDDEN_UNITS * hidden + INNER_UNITS * inner) * dtype.itemsize
    return Estimate(activations=int(SAFETY * kept * tokens * layers), trained=4 * 4 * trained_parameters)


def available(device: torch.device) -> int:
    """Bytes that can still be had on a device."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    return int(psutil.virtual_memory().available)


@contextmanager
def kept_memory() -> Iterator[Callable[[], None]]:
    """Until the end, freed pages stay with the process where malloc can be told so (glibc); gives what returns them.

    By itself malloc returns them after every pass, and each page is then found,
    cleared and mapped again: 200,000 faults for a pair of 1100 tokens, 0.2-0.5 s of 4 s.
    Never returned, holes between passes of different sizes add up (1630 MB after three
    steps against 1540 after one): a run returns them once a step.
    """
    libc: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not (hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")):
        yield lambda: None
        return
    if not libc.mallopt(M_MMAP_THRESHOLD, 2**30):  # older ones cap it
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST)
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield lambda: libc.malloc_trim(0)
    finally:
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST)
        libc.mallopt(M_TRIM_THRESHOLD, 2 * LARGEST)
        libc.malloc_trim(0)
