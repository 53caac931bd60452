"""Truth directions: can one tell true statements from false ones by a layer's states, and what does it say of a topic?

Difference of means, as in Marks & Tegmark 2310.06824 and false-facts' probes:
a direction that is not fitted to its sample the way a regression is. The layer is
chosen in nested folds (Cawley & Talbot, JMLR 11, 2010): the best of thirty layers
looks better on the facts that it is the best on than it is on others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from conviction.core.protocols import Progress, chat
from conviction.data.topic import Item, Topic
from conviction.localization.records import TruthDirection, TruthProbe
from conviction.models.hf import HFModel
from conviction.models.lora import decoder_layers
from conviction.models.states import block_outputs

FOLDS = 6
LEAST = 3  # propositions: one to score, one to choose the layer by, one to fit on

Pair = tuple[NDArray[np.float32], NDArray[np.float32]]
"""States of true and of false answers, [facts, hidden] of one layer or [facts, layers, hidden] of all."""


def read_truth(model: HFModel, topic: Topic, *, seed: int = 0, progress: Progress | None = None) -> TruthProbe | None:
    """Directions of all layers, from the last token's states of true and false answers to neighbours and controls.

    None: fewer than three propositions to learn and to test on.
    """
    facts, asked = topic.of_role("neighbour", "control"), topic.of_role("target")
    names = list(dict.fromkeys(fact.proposition for fact in facts))
    if len(names) < LEAST:
        return None
    total = 2 * (len(facts) + len(asked))
    known = _states(model, facts, ("true", "false"), progress, 0, total)
    open_ = _states(model, asked, (topic.target, topic.other), progress, 2 * len(facts), total)
    chance = np.random.default_rng(seed)
    fold_of = dict(zip(names, chance.permutation(len(names)) % FOLDS, strict=True))
    folds = np.array([fold_of[fact.proposition] for fact in facts])
    truth, shuffled = (known[:, 0], known[:, 1]), _shuffled(known, chance)
    leads = [_leads(open_, known, layer) for layer in range(known.shape[2])]
    layers = [
        TruthDirection(
            layer=layer,
            auc=cross_validated(_at(truth, layer), folds),
            shuffled=cross_validated(_at(shuffled, layer), folds),
            towards=towards,
        )
        for layer, towards in enumerate(leads)
    ]
    auc, chosen = nested(truth, folds)
    by_chance, _ = nested(shuffled, folds)
    usual = max(layers, key=lambda one: one.auc).layer
    return TruthProbe(
        auc=auc, shuffled=by_chance, chosen_layers=chosen, facts=len(facts), towards=leads[usual], layers=tuple(layers)
    )


def _shuffled(known: NDArray[np.float32], chance: np.random.Generator) -> Pair:
    """The same states with true and false exchanged at random, alike in all layers."""
    flipped = (chance.random(len(known)) < 0.5)[:, None, None]
    return np.where(flipped, known[:, 1], known[:, 0]), np.where(flipped, known[:, 0], known[:, 1])


def _leads(open_: NDArray[np.float32], known: NDArray[np.float32], layer: int) -> float | None:
    """Share of the topic's propositions whose target answer a layer's direction calls truer; None: it has none."""
    if not len(open_):
        return None
    direction = (known[:, 0, layer] - known[:, 1, layer]).mean(0)
    return float(((open_[:, 0, layer] - open_[:, 1, layer]) @ direction > 0).mean())


def _at(states: Pair, layer: int) -> Pair:
    return states[0][:, layer], states[1][:, layer]


def cross_validated(states: Pair, folds: NDArray[np.int64]) -> float:
    """AUC over held-out propositions in one layer; scores of a fold are centred on its training data."""
    scored = [_score(states, folds != fold, folds == fold) for fold in np.unique(folds)]
    return _auc(scored)


def nested(states: Pair, folds: NDArray[np.int64]) -> tuple[float, tuple[int, ...]]:
    """AUC over held-out propositions, with the layer chosen anew for each fold by all others; and these layers."""
    scored, chosen = [], []
    for fold in np.unique(folds):
        inside, outside = folds != fold, folds == fold
        kept, inner = (states[0][inside], states[1][inside]), folds[inside]
        best = max(range(states[0].shape[1]), key=lambda n, k=kept, f=inner: cross_validated(_at(k, n), f))  # type: ignore[misc]
        scored.append(_score(_at(states, best), inside, outside))
        chosen.append(best)
    return _auc(scored), tuple(chosen)


def _score(
    states: Pair, inside: NDArray[np.bool_], outside: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What the direction of the facts inside says of the true and of the false answers outside."""
    true, false = states
    direction = (true[inside] - false[inside]).mean(0)
    middle = (true[inside] + false[inside]).mean(0) / 2
    return (true[outside] - middle) @ direction, (false[outside] - middle) @ direction


def _auc(scored: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]]) -> float:
    true, false = (np.concatenate([pair[side] for pair in scored]) for side in (0, 1))
    ranks = rankdata(np.concatenate([true, false]))[: len(true)]  # Mann-Whitney's U over the pairs there are
    return float((ranks.sum() - len(true) * (len(true) + 1) / 2) / (len(true) * len(false)))


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
