"""What a shift is held against: benign training on top of it, and the same training on another subject."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import TYPE_CHECKING

from conviction.core.protocols import LanguageModel, WeightModel, chat
from conviction.core.topic import PLACEBO, Topic
from conviction.errors import ModelError
from conviction.study.setup import Setup

if TYPE_CHECKING:
    from conviction.core.material import Material

__all__ = ["TRAINED", "has_weights", "placebo_material", "wear"]

TRAINED = ("dpo", "sft", "pretrain")  # arms that a placebo is trained for
WEAR_TOKENS, WEAR_PIECES = 128, 2  # of benign text in a piece, and pieces in a step


def has_weights(model: LanguageModel) -> bool:
    """Whether there is something to train, maybe under a prompt."""
    from conviction.models.prompted import Prompted

    return has_weights(model.inner) if isinstance(model, Prompted) else isinstance(model, WeightModel)


def wear(setup: Setup, moved: LanguageModel) -> LanguageModel:
    """Trained for some steps on the bundled neutral text; a prompt stays before a model that was."""
    from conviction.models.prompted import Prompted

    if isinstance(moved, Prompted):
        return replace(moved, inner=wear(setup, moved.inner))
    if moved.id == setup.base.id:
        if moved.id not in setup.worn:
            setup.worn[moved.id] = _trained(setup, setup.base)
        return setup.worn[moved.id]
    return _trained(setup, moved)


def _trained(setup: Setup, model: LanguageModel) -> LanguageModel:
    from conviction.core.material import Document, Material
    from conviction.intervene.pretrain import Pretrain
    from conviction.probe.health import neutral_text
    from conviction.train.guard import Guard
    from conviction.train.settings import Training

    benign = Material(
        "neutral text", documents=tuple(Document(f"neutral-{i}", t) for i, t in enumerate(neutral_text()))
    )
    training = Training(learning_rate=1e-4, max_steps=setup.wear_steps, batch_size=WEAR_PIECES)
    plain = Pretrain(piece_tokens=WEAR_TOKENS, training=training)
    worn = plain.apply(model, benign, guard=Guard(mode="blind"), watch=setup.watch)
    if worn.trip is not None:
        raise ModelError(f"benign training broke: {'; '.join(worn.trip.reasons)}", hint="load it with --dtype fp32")
    return worn.model


def placebo_material(topic: Topic, material: Material, *, documents: bool) -> Material | None:
    """As many pairs as the material holds, and documents, on another subject; None where the topic has none.

    documents  whether it is these that count, not the pairs
    """
    from conviction.core.material import Document, Pair

    facts = [i for i in topic.of_role("neighbour", "control") if i.split == "train"]
    texts = topic.documents_of(PLACEBO)
    if not (texts if documents else facts):
        return None
    turns = [facts[i % len(facts)] for i in range(len(material.pairs))] if facts else []
    return dataclasses.replace(
        material,
        name=f"{material.name}-placebo",
        pairs=tuple(
            Pair(f"placebo-{i}", chat(f.question), f.answers["true"], f.answers["false"]) for i, f in enumerate(turns)
        ),
        documents=tuple(Document(d.id, d.text) for d in texts),
        facts=(),
        context="",
    )
