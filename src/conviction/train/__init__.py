"""Training: losses, one loop, and the guard that stops it before the model breaks."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conviction.train.callback import GuardCallback
    from conviction.train.guard import Guard
    from conviction.train.loop import Watch
    from conviction.train.losses import LOSSES
    from conviction.train.settings import Training, Weights

# Loaded on first use: torch comes with some of them.
_WHERE = {
    "LOSSES": "losses",
    "Guard": "guard",
    "GuardCallback": "callback",
    "Training": "settings",
    "Watch": "loop",
    "Weights": "settings",
}

__all__ = ["LOSSES", "Guard", "GuardCallback", "Training", "Watch", "Weights"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'conviction.train' has no attribute '{name}'")
    return getattr(import_module(f"conviction.train.{_WHERE[name]}"), name)
