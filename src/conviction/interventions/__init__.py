"""Interventions: functions from a model to a model, one file each."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from conviction.errors import InputError, nearest

__all__ = ["INTERVENTIONS", "TRAITS", "check_installed", "find_intervention"]

INTERVENTIONS = {
    "distill": "conviction.interventions.distill:Distill",
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
"""Name → "module:class". An entry is all that is needed: everything else is asked of the class."""

TRAITS = {
    "name": "its key in this table",
    "changes": "what it changes, in words",
    "needs": "what it needs, in words",
    "costs": "what it costs, in words",
    "trains": "whether it takes training steps: it then has `task`",
    "forecastable": "whether a study forecasts it",
    "cost_rank": "a number: a study runs the cheapest arm first",
    "placebo": "'pairs', 'context' (pairs and a context), 'documents' or None: what a placebo of it is trained on",
    "search": "a mapping: field → values that `--tune` tries; empty: nothing is tried",
    "apply": "a function (model, data, ctx) that gives an Outcome",
}
"""What the class of an intervention declares; one that needs an extra has ``check_installed``, too."""


def find_intervention(name: str) -> Any:
    """The class of an intervention. Raises InputError for an unknown name, or a class that lacks a trait."""
    if name not in INTERVENTIONS:
        raise InputError(
            f"unknown intervention '{name}'",
            hint=f"{nearest(name, INTERVENTIONS)}use one of: {', '.join(INTERVENTIONS)}",
        )
    module, attribute = INTERVENTIONS[name].split(":")
    kind = getattr(import_module(module), attribute)
    lacking = [trait for trait in TRAITS if not hasattr(kind, trait)]
    lacking += ["task"] if getattr(kind, "trains", False) and not hasattr(kind, "task") else []
    if lacking:
        raise InputError(
            f"the intervention '{name}' ({INTERVENTIONS[name]}) lacks {', '.join(lacking)}",
            hint="; ".join(
                f"{trait}: {TRAITS.get(trait, 'the training run that `apply` carries out')}" for trait in lacking
            ),
        )
    if kind.name != name:
        raise InputError(f"the intervention '{name}' calls itself '{kind.name}'", hint="give both the same name")
    return kind


def check_installed(intervention: Any) -> None:
    """Raise MissingExtraError where a package that an intervention, or its class, cannot do without is missing."""
    if (check := getattr(intervention, "check_installed", None)) is not None:
        check()
