"""Models: where they come from and how they are questioned."""

from conviction.models.backends import BACKENDS
from conviction.models.loading import DEFAULT_MODEL, load_model

__all__ = ["BACKENDS", "DEFAULT_MODEL", "load_model"]
