"""accelerate's side of a run: devices, processes, mixed precision, experiment trackers."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator

from conviction.core.context import RunContext
from conviction.errors import InputError, MissingExtraError, nearest
from conviction.models.hf import HFModel

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")


def start_accelerator(model: HFModel, ctx: RunContext, settings: Mapping[str, Any]) -> Accelerator:
    """An accelerator for this model, under ``accelerate launch`` or alone, with its tracker begun.

    Raises InputError for an unknown tracker, MissingExtraError for a tracker that is not installed.
    """
    track = ctx.tracker
    if track is not None:
        check_tracker(track)
    # Precision is the policy's business: accelerate would fix it once for the whole process.
    accelerator = Accelerator(
        cpu=model.device.type == "cpu",
        mixed_precision="no",
        log_with=track,
        project_dir=str(ctx.run.folder) if ctx.run is not None else None,
    )
    if track is not None:
        plain = {k: v if isinstance(v, int | float | str | bool) else str(v) for k, v in settings.items()}
        accelerator.init_trackers("conviction", config=plain)
    return accelerator


def finish_tracking(accelerator: Accelerator) -> None:
    """Let the tracker write what it holds."""
    if accelerator.trackers:
        accelerator.end_training()


def check_tracker(track: str) -> None:
    """Raise unless the tracker is known and installed."""
    if track not in TRACKERS:
        raise InputError(f"unknown tracker '{track}'", hint=f"{nearest(track, TRACKERS)}use {', '.join(TRACKERS)}")
    installed = [track, "tensorboardX"] if track == "tensorboard" else [track]
    if not any(importlib.util.find_spec(name) for name in installed):
        raise MissingExtraError(
            f"the tracker '{track}' is not installed",
            hint=f"pip install {track}" + (" (or conviction[track])" if track == "tensorboard" else ""),
        )


def numbers_of(record: Mapping[str, Any]) -> dict[str, float]:
    """What a tracker can draw."""
    guard = {f"guard/{name}": value for name, value in record["guard"].items()}
    return {k: v for k, v in {**record, **guard}.items() if isinstance(v, int | float)}
