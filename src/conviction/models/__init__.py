"""Models: where they come from and how they are questioned."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from conviction.core.protocols import LanguageModel
from conviction.errors import InputError, nearest
from conviction.models.saved import is_saved, load_saved

__all__ = ["BACKENDS", "DEFAULT_MODEL", "load_model"]

DEFAULT_MODEL = "smollm2-135m"

BACKENDS = {
    "hf": "conviction.models.backends.transformers:load",
}


def load_model(
    name: str = DEFAULT_MODEL,
    *,
    backend: str = "hf",
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    log: Callable[[str], None] = lambda _: None,
) -> LanguageModel:
    """Load a model by name: an embedded one, a local folder (of an intervention, too), a ``.gguf`` file or a hub id.

    device  auto | cpu | cuda | mps
    dtype   auto (measured) | fp32 | bf16 | fp16
    log     is told what takes time (a first download)

    Raises ModelNotFoundError or ModelError, each with a hint.
    """
    if backend not in BACKENDS:
        raise InputError(
            f"unknown backend '{backend}'", hint=f"{nearest(backend, BACKENDS)}use one of: {', '.join(BACKENDS)}"
        )
    how: dict[str, Any] = {"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code, "log": log}
    if is_saved(name):
        return load_saved(name, lambda base: load_model(base, backend=backend, **how), log)
    module, attribute = BACKENDS[backend].split(":")
    model: LanguageModel = getattr(import_module(module), attribute)(name, **how)
    return model
