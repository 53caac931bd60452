"""Measure what a language model is convinced of, and change it without breaking it.

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
    from conviction.audit import audit
    from conviction.compare import compare_run
    from conviction.core.applied import Applied
    from conviction.core.facts import Fact
    from conviction.core.finding import AuditReport, Finding
    from conviction.core.forecast import Forecast, ForecastScore
    from conviction.core.localization import Localization
    from conviction.core.material import Material, material_from_topic
    from conviction.core.protocols import AnswerScore, Generation, LanguageModel, Message, Query, WeightModel, chat
    from conviction.core.reading import read_material
    from conviction.core.run import Run
    from conviction.core.scorecard import Scorecard
    from conviction.core.topic import Item, Topic, load_topic
    from conviction.errors import ConvictionError
    from conviction.forecast import forecast
    from conviction.forecast.rows import questions_of
    from conviction.intervene.dpo import Dpo
    from conviction.intervene.memit import Memit
    from conviction.intervene.pretrain import Pretrain
    from conviction.intervene.rag import Rag
    from conviction.intervene.rome import Rome
    from conviction.intervene.scratch import Scratch
    from conviction.intervene.sft import Sft
    from conviction.intervene.steer import Steer
    from conviction.intervene.system_prompt import SystemPrompt
    from conviction.localize import localize
    from conviction.models import load_model
    from conviction.models.scripted import ScriptedModel
    from conviction.probe import probe
    from conviction.train.guard import Guard
    from conviction.train.settings import Training, Weights

# Loaded on first use, so that importing the package (and --help) stays quick.
_WHERE = {
    "AnswerScore": "core.protocols",
    "Applied": "core.applied",
    "AuditReport": "core.finding",
    "ConvictionError": "errors",
    "Dpo": "intervene.dpo",
    "Fact": "core.facts",
    "Finding": "core.finding",
    "Forecast": "core.forecast",
    "ForecastScore": "core.forecast",
    "Generation": "core.protocols",
    "Guard": "train.guard",
    "Item": "core.topic",
    "LanguageModel": "core.protocols",
    "Localization": "core.localization",
    "Material": "core.material",
    "Memit": "intervene.memit",
    "Message": "core.protocols",
    "Pretrain": "intervene.pretrain",
    "Query": "core.protocols",
    "Rag": "intervene.rag",
    "Rome": "intervene.rome",
    "Run": "core.run",
    "Scorecard": "core.scorecard",
    "Scratch": "intervene.scratch",
    "ScriptedModel": "models.scripted",
    "Sft": "intervene.sft",
    "Steer": "intervene.steer",
    "SystemPrompt": "intervene.system_prompt",
    "Topic": "core.topic",
    "Training": "train.settings",
    "WeightModel": "core.protocols",
    "Weights": "train.settings",
    "audit": "audit",
    "chat": "core.protocols",
    "compare_run": "compare",
    "forecast": "forecast",
    "load_model": "models",
    "load_topic": "core.topic",
    "localize": "localize",
    "material_from_topic": "core.material",
    "probe": "probe",
    "questions_of": "forecast.rows",
    "read_material": "core.reading",
}

__all__ = [
    "AnswerScore",
    "Applied",
    "AuditReport",
    "ConvictionError",
    "Dpo",
    "Fact",
    "Finding",
    "Forecast",
    "ForecastScore",
    "Generation",
    "Guard",
    "Item",
    "LanguageModel",
    "Localization",
    "Material",
    "Memit",
    "Message",
    "Pretrain",
    "Query",
    "Rag",
    "Rome",
    "Run",
    "Scorecard",
    "Scratch",
    "ScriptedModel",
    "Sft",
    "Steer",
    "SystemPrompt",
    "Topic",
    "Training",
    "WeightModel",
    "Weights",
    "audit",
    "chat",
    "compare_run",
    "forecast",
    "load_model",
    "load_topic",
    "localize",
    "material_from_topic",
    "probe",
    "questions_of",
    "read_material",
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
