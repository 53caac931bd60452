"""A topic to choose settings on: its train split divided by proposition, its test split left out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from conviction.data.topic import Item, Topic

FEWEST = 8  # propositions of the train split: with fewer, a part of them tells nothing
EVERY = 3  # every third proposition is asked, the others are trained on


def validation_topic(topic: Topic) -> Topic | None:
    """The topic with every third proposition of its train split as test split, and no item of its own test split.

    What is chosen on it has not seen what a verdict is read on. Facts are divided in the same way, each role by itself.
    None where the train split has fewer than ``FEWEST`` propositions: there is nothing to choose on.
    """
    train = [item for item in topic.items if item.split == "train"]
    if len({item.proposition for item in train if item.role == "target"}) < FEWEST:
        return None
    asked = _every_third(item for item in train if not item.is_fact)
    for role in ("neighbour", "control"):
        asked |= _every_third(item for item in train if item.role == role)
    items = tuple(item.model_copy(update={"split": "test"}) if item.proposition in asked else item for item in train)
    digest = hashlib.sha256(f"{topic.digest} validation {EVERY}".encode()).hexdigest()
    facts = tuple(fact for fact in topic.facts if fact.proposition not in asked)
    return topic.model_copy(update={"items": items, "facts": facts, "digest": digest})


def _every_third(items: Iterable[Item]) -> set[str]:
    propositions = list(dict.fromkeys(item.proposition for item in items))
    return set(propositions[EVERY - 1 :: EVERY])
