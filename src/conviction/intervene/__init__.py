"""Interventions: functions from a model to a model, one file each."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from conviction.errors import InputError, nearest

__all__ = ["INTERVENTIONS", "find_intervention"]

INTERVENTIONS = {
    "dpo": "conviction.intervene.dpo:Dpo",
    "memit": "conviction.intervene.memit:Memit",
    "pretrain": "conviction.intervene.pretrain:Pretrain",
    "rag": "conviction.intervene.rag:Rag",
    "rome": "conviction.intervene.rome:Rome",
    "scratch": "conviction.intervene.scratch:Scratch",
    "sft": "conviction.intervene.sft:Sft",
    "steer": "conviction.intervene.steer:Steer",
    "system_prompt": "conviction.intervene.system_prompt:SystemPrompt",
}


def find_intervention(name: str) -> Any:
    """The class of an intervention. Raises InputError for an unknown name."""
    if name not in INTERVENTIONS:
        raise InputError(
            f"unknown intervention '{name}'",
            hint=f"{nearest(name, INTERVENTIONS)}use one of: {', '.join(INTERVENTIONS)}",
        )
    module, attribute = INTERVENTIONS[name].split(":")
    return getattr(import_module(module), attribute)
