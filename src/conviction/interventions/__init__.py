"""Interventions: functions from a model to a model, one file each."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from conviction.errors import InputError, nearest

__all__ = ["INTERVENTIONS", "find_intervention"]

INTERVENTIONS = {
    "dpo": "conviction.interventions.dpo:Dpo",
    "memit": "conviction.interventions.memit:Memit",
    "pretrain": "conviction.interventions.pretrain:Pretrain",
    "rag": "conviction.interventions.rag:Rag",
    "rome": "conviction.interventions.rome:Rome",
    "scratch": "conviction.interventions.scratch:Scratch",
    "sft": "conviction.interventions.sft:Sft",
    "steer": "conviction.interventions.steer:Steer",
    "system_prompt": "conviction.interventions.system_prompt:SystemPrompt",
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
