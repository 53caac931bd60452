"""How a study loads models: all in one dtype, or an arm would differ from the untouched model by rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from conviction.core.protocols import LanguageModel
from conviction.core.run import Run
from conviction.errors import RunError


def loads_in_one_dtype(
    load: Callable[..., LanguageModel], run: Run, *, dtype: Any = None
) -> Callable[[str], LanguageModel]:
    """``load`` with one dtype: ``dtype``, else that in which the study was begun, else that of the first model.

    A dtype that cannot be asked for, as quantised weights have, is left to ``load``.
    """
    known = _askable(dtype) or _begun_in(run)

    def load_one(name: str) -> LanguageModel:
        nonlocal known
        if known is not None:
            return load(name, dtype=known)
        loaded = load(name)
        known = _askable(loaded.describe().get("dtype"))
        return loaded

    return load_one


def _begun_in(run: Run) -> str | None:
    try:
        return _askable(run.config()["model"]["dtype"])
    except (RunError, KeyError, TypeError):
        return None


def _askable(dtype: Any) -> str | None:
    from conviction.models.devices import KNOWN

    return dtype if dtype in KNOWN else None
