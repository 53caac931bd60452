"""Measure what a language model is convinced of.

::

    from conviction import load_model, load_topic, probe

    card = probe(load_model(), load_topic("obesity"))
    print(card.summary.verdict)
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conviction.core.protocols import AnswerScore, Generation, LanguageModel, Message, Query, WeightModel, chat
    from conviction.core.run import Run
    from conviction.core.scorecard import Scorecard
    from conviction.core.topic import Item, Topic, load_topic
    from conviction.errors import ConvictionError
    from conviction.models import load_model
    from conviction.models.scripted import ScriptedModel
    from conviction.probe import probe

# Loaded on first use, so that importing the package (and --help) stays quick.
_WHERE = {
    "AnswerScore": "core.protocols",
    "ConvictionError": "errors",
    "Generation": "core.protocols",
    "Item": "core.topic",
    "LanguageModel": "core.protocols",
    "Message": "core.protocols",
    "Query": "core.protocols",
    "Run": "core.run",
    "Scorecard": "core.scorecard",
    "ScriptedModel": "models.scripted",
    "Topic": "core.topic",
    "WeightModel": "core.protocols",
    "chat": "core.protocols",
    "load_model": "models",
    "load_topic": "core.topic",
    "probe": "probe",
}

__all__ = [
    "AnswerScore",
    "ConvictionError",
    "Generation",
    "Item",
    "LanguageModel",
    "Message",
    "Query",
    "Run",
    "Scorecard",
    "ScriptedModel",
    "Topic",
    "WeightModel",
    "chat",
    "load_model",
    "load_topic",
    "probe",
]


class _Package(ModuleType):
    """Keeps verbs callable: importing the room ``conviction.probe`` must not hide the function ``probe``."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _WHERE and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'conviction' has no attribute '{name}'")
    return getattr(import_module(f"conviction.{_WHERE[name]}"), name)
