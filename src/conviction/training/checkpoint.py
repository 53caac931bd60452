"""Checkpoints: whole or not at all, checked when read, the last two kept. No pickle.

A checkpoint is a folder of one safetensors file and one JSON file that holds
the former's hash. It is written beside its place and renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from conviction.core.gate import json_value, open_file, read_text
from conviction.core.storage import new_folder_beside, storage_errors, use_umask
from conviction.errors import RunError

KEPT = 2
_NAME = re.compile(r"step-(\d{6,})")


def save_checkpoint(folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write ``folder/step-<step>``; older checkpoints go once it is complete.

    Raises StorageError if the disk refuses: earlier checkpoints are then untouched.
    """
    with storage_errors(f"writing the checkpoint of step {step} to {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        place = folder / f"step-{step:06d}"
        work = new_folder_beside(place)
        try:
            save_file(
                {name: t.detach().cpu().contiguous() for name, t in tensors.items()}, work / "tensors.safetensors"
            )
            head = {"step": step, "sha256": _digest(work / "tensors.safetensors"), "state": state}
            (work / "state.json").write_text(json.dumps(head), encoding="utf-8")
            use_umask(work)
            shutil.rmtree(place, ignore_errors=True)
            work.rename(place)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
        for old in [
            *(path for _, path in _checkpoints(folder)[KEPT:]),
            *folder.glob(".step-*"),
        ]:  # what a kill left behind
            shutil.rmtree(old, ignore_errors=True)


def load_latest(folder: Path, log: Callable[[str], None]) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
    """(step, tensors, state) of the newest checkpoint that is sound; says which ones are not."""
    for step, path in _checkpoints(folder):
        try:
            return step, *_read(path)
        except Exception as error:  # a damaged file can fail in any way; the one before may be sound
            log(f"the checkpoint {path} cannot be used ({error}); trying the one before")
    return None


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    head = json_value(read_text(path / "state.json", RunError))  # its readings may be NaN, which JSON does not know
    if _digest(path / "tensors.safetensors") != head["sha256"]:
        raise ValueError("its weights are not those that were written")
    return load_file(path / "tensors.safetensors"), head["state"]


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Newest first."""
    if not os.path.isdir(folder):
        return []
    named = [(match, path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return sorted(((int(match[1]), path) for match, path in named), reverse=True)


def _digest(path: Path) -> str:
    with open_file(path, RunError) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
