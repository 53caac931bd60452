"""Simple guesses of how far each pair moves: what a forecast has to beat. Movements of the gap, nats per token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from conviction.data.training_data import PreferencePair
from conviction.editing.sites import depth_layers
from conviction.forecasting.pilot import distance
from conviction.models.lora import decoder_layers

if TYPE_CHECKING:
    from conviction.forecasting.rows import HeldOutPair
    from conviction.forecasting.simulation import Linearization
    from conviction.models.hf import HFModel
    from conviction.training.loop import TrainingTask

Guess = NDArray[np.float64]
DEPTH = 0.6


def guesses(
    model: HFModel, trained: Sequence[PreferencePair], task: TrainingTask, linearization: Linearization
) -> dict[str, Guess]:
    """Baseline → a number for every pair that is asked, in the order of the forecast's rows."""
    kernel, asked = linearization.kernel, linearization.rows.asked
    moved = kernel.gradients.sums - kernel.base
    pilot = _gaps(moved, kernel.counts, asked).numpy() * _way(task, linearization)
    level = float(pilot.mean())
    return {
        "nothing": np.zeros(len(asked)),
        "pilot": pilot,
        "gradients": _scaled(_gradients(linearization), level),
        "projection": _scaled(_projection(model, trained, linearization.asked), level),
    }


def _way(task: TrainingTask, linearization: Linearization) -> float:
    walked = linearization.pilot[-1].way if linearization.pilot else 0.0
    return distance(task.training, len(task.order)) / walked if walked else 0.0


def _gaps(values: torch.Tensor, counts: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
    means = values[pairs] / counts[pairs]
    return (means[:, 0] - means[:, 1]).double()


def _gradients(linearization: Linearization) -> Guess:
    """⟨gradient of a pair's gap, mean gradient of what is trained⟩ at the pilot's end, in sampled coordinates of B."""
    kernel, rows = linearization.kernel, linearization.rows
    features = kernel.gradients.b0.float() / kernel.counts[:, None]
    trained = features[rows.examples]
    mean = (trained[:, 0] - trained[:, 1] if trained.shape[1] == 2 else trained[:, 0]).mean(0)
    both = features[rows.asked]
    result: Guess = ((both[:, 0] - both[:, 1]) @ mean).double().numpy()
    return result


def _projection(model: HFModel, trained: Sequence[PreferencePair], asked: Sequence[HeldOutPair]) -> Guess:
    from conviction.interventions.steer import _differences

    (layer,) = depth_layers(len(decoder_layers(model.module)), (DEPTH,))
    direction = _differences(model, trained, [layer])[layer].mean(0)
    own = _differences(model, [one.pair for one in asked], [layer])[layer]
    result: Guess = (own @ direction).double().numpy()
    return result


def _scaled(values: Guess, level: float) -> Guess:
    """With the mean of another guess; as it is where it has none of its own."""
    mean = float(values.mean())
    return values * (level / mean) if mean else values
