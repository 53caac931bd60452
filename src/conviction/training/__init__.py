"""Training: losses, one loop, and the guard with its sensors, which stops it before the model breaks."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conviction.training.callback import GuardCallback
    from conviction.training.guard import Guard
    from conviction.training.losses import LOSSES
    from conviction.training.sensors import SENSORS
    from conviction.training.settings import Training, Weights

# Loaded on first use: torch comes with some of them.
_WHERE = {
    "LOSSES": "losses",
    "SENSORS": "sensors",
    "Guard": "guard",
    "GuardCallback": "callback",
    "Training": "settings",
    "Weights": "settings",
}

__all__ = ["LOSSES", "SENSORS", "Guard", "GuardCallback", "Training", "Weights"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'conviction.training' has no attribute '{name}'")
    return getattr(import_module(f"conviction.training.{_WHERE[name]}"), name)
