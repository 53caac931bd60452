"""Truth directions: can one tell true statements from false ones by a layer's states, and what does it say of a topic?

Difference of means, as in Marks & Tegmark 2310.06824 and false-facts' probes:
a direction that is not fitted to its sample the way a regression is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from conviction.core.protocols import Progress, chat
from conviction.data.topic import Item, Topic
from conviction.localization.records import TruthDirection
from conviction.models.hf import HFModel
from conviction.models.lora import decoder_layers
from conviction.models.states import block_outputs

FOLDS = 6


def read_truth(
    model: HFModel, topic: Topic, *, seed: int = 0, progress: Progress | None = None
) -> list[TruthDirection]:
    """One reading a layer, from the last token's states of true and false answers to neighbours and controls."""
    facts, asked = topic.of_role("neighbour", "control"), topic.of_role("target")
    total = 2 * (len(facts) + len(asked))
    known = _states(model, facts, ("true", "false"), progress, 0, total)
    open_ = _states(model, asked, (topic.target, topic.other), progress, 2 * len(facts), total)
    chance = np.random.default_rng(seed)
    folds = chance.permutation(len(facts)) % FOLDS
    readings = []
    for layer in range(known.shape[2]):
        true, false = known[:, 0, layer], known[:, 1, layer]
        flipped = chance.random(len(facts)) < 0.5
        mixed = np.where(flipped[:, None], false, true), np.where(flipped[:, None], true, false)
        direction = (true - false).mean(0)
        leads = (open_[:, 0, layer] - open_[:, 1, layer]) @ direction if len(asked) else np.array([])
        readings.append(
            TruthDirection(
                layer=layer,
                auc=_cross_validated(true, false, folds),
                shuffled=_cross_validated(*mixed, folds),
                towards=float((leads > 0).mean()) if len(asked) else None,
            )
        )
    return readings


def _cross_validated(true: NDArray[np.float32], false: NDArray[np.float32], folds: NDArray[np.int64]) -> float:
    """AUC over held-out propositions; scores of a fold are centred on its training data."""
    scores, labels = [], []
    for fold in range(FOLDS):
        inside, outside = folds != fold, folds == fold
        if not outside.any() or not inside.any():
            continue
        direction = (true[inside] - false[inside]).mean(0)
        middle = (true[inside] + false[inside]).mean(0) / 2
        for label, states in ((1, true[outside]), (0, false[outside])):
            scores.append((states - middle) @ direction)
            labels.append(np.full(len(states), label))
    return float(roc_auc_score(np.concatenate(labels), np.concatenate(scores)))


def _states(
    model: HFModel, items: Sequence[Item], sides: tuple[str, str], progress: Progress | None, done: int, total: int
) -> NDArray[np.float32]:
    """[items, 2, layers, hidden] of the last token of each answer, after its question."""
    layers = list(range(len(decoder_layers(model.module))))
    results = []
    for item in items:
        prompt, answers = model.encoder.encode(chat(item.question), [item.answers[side] for side in sides])
        for answer in answers:
            outputs = block_outputs(model, prompt + answer, layers)
            results.append(torch.stack([outputs[layer][-1] for layer in layers]).cpu().numpy())
            done += 1
            if progress is not None:
                progress(done, total)
    if not results:
        return np.zeros((0, 2, len(layers), 1), dtype=np.float32)
    return np.stack(results).reshape(len(items), 2, len(layers), -1)
