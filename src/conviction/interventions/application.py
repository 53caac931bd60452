"""Carry an intervention out, and measure what that takes."""

from __future__ import annotations

from typing import Any

from conviction.core.context import RunContext
from conviction.core.protocols import LanguageModel
from conviction.data.training_data import TrainingData
from conviction.errors import InputError
from conviction.interventions.records import Outcome

__all__ = ["carry_out"]


def carry_out(intervention: Any, model: LanguageModel, data: TrainingData, ctx: RunContext) -> Outcome:
    """What ``intervention.apply`` gives, with the seconds and the memory that it took; the given model stays as it is.

    Raises InputError for a tracker where there is no training to track.
    """
    import torch

    from conviction.training.resources import measured

    if ctx.tracker is not None and not intervention.trains:
        raise InputError(f"'{intervention.name}' does not train: there is nothing to track", hint="leave --track out")
    with measured(getattr(model, "device", torch.device("cpu"))) as cost:
        outcome: Outcome = intervention.apply(model, data, ctx)
    seconds = cost.seconds if outcome.seconds is None else outcome.seconds  # a resumed training counts its earlier time
    return outcome.model_copy(update={"seconds": seconds, "peak_mb": cost.peak_mb})
