"""Hyperparameters that have a name: the runs of the report that this project began with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from conviction.errors import InputError, nearest


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Options under one name; what they leave out keeps our defaults."""

    name: str
    meaning: str
    options: Mapping[str, Any]


DIVERGED = "it diverged: margin 4.2, garbage"
COLLAPSED = "it looked stable and collapsed into dots and dashes"


def _report(run: int, outcome: str, **options: Any) -> Preset:
    meaning = (
        f"run {run} of the practitioner whose question started this library ({outcome}); "
        "rank, scale, epochs and batch size are not recorded and stay at our defaults"
    )
    return Preset(name=f"report-run{run}", meaning=meaning, options={"loss": "dpo", "tune": "lora", **options})


_RUNS = (
    _report(1, DIVERGED, beta=0.1, learning_rate=1e-5, gradient_accumulation=4, num_layers=14),
    _report(2, COLLAPSED, beta=0.05, learning_rate=5e-6, gradient_accumulation=8, num_layers=14),
    _report(3, "outcome not recorded", beta=0.01, learning_rate=1e-6, gradient_accumulation=8, num_layers=8),
)
PRESETS = {preset.name: preset for preset in _RUNS}


def find_preset(name: str) -> Preset:
    """A preset by name. Raises InputError, naming the nearest."""
    if name not in PRESETS:
        raise InputError(f"unknown preset '{name}'", hint=f"{nearest(name, PRESETS)}presets: {', '.join(PRESETS)}")
    return PRESETS[name]
