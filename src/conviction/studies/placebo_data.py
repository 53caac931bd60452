"""Data of another subject, as much as the data itself: what training alone does, whatever it is about."""

from __future__ import annotations

import dataclasses

from conviction.core.protocols import chat
from conviction.data.topic import PLACEBO, Topic
from conviction.data.training_data import Document, PreferencePair, TrainingData

__all__ = ["placebo_data"]


def placebo_data(topic: Topic, data: TrainingData, *, documents: bool) -> TrainingData | None:
    """As many pairs as the data holds, and documents, on another subject; None where the topic has none.

    documents  whether it is these that count, not the pairs
    """
    facts = [i for i in topic.of_role("neighbour", "control") if i.split == "train"]
    texts = topic.documents_of(PLACEBO)
    if not (texts if documents else facts):
        return None
    turns = [facts[i % len(facts)] for i in range(len(data.pairs))] if facts else []
    return dataclasses.replace(
        data,
        name=f"{data.name}-placebo",
        pairs=tuple(
            PreferencePair(f"placebo-{i}", chat(f.question), f.answers["true"], f.answers["false"])
            for i, f in enumerate(turns)
        ),
        documents=tuple(Document(d.id, d.text) for d in texts),
        facts=(),
        context="",
    )
