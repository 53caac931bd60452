"""Which of the processes of ``accelerate launch`` this is; torch is not asked."""

from __future__ import annotations

import os

__all__ = ["main_process", "several_processes"]


def main_process() -> bool:
    """Whether this is the only process, or the first under ``accelerate launch``."""
    return int(os.environ.get("RANK", "0")) == 0


def several_processes() -> bool:
    """Whether ``accelerate launch`` started more than one."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1
