"""Models by name: from a backend, or changed ones from the folders that interventions wrote."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from conviction.core.protocols import LanguageModel
from conviction.core.storage import user_path
from conviction.errors import ConvictionError, ModelError
from conviction.models.backends import DEFAULT_BACKEND, find_backend
from conviction.models.engine.protocol import Engine
from conviction.models.language_model import EngineModel
from conviction.models.saved import is_saved, load_saved

DEFAULT_MODEL = "smollm2-135m"
ADAPTER = "adapter_config.json"


def load_model(
    name: str = DEFAULT_MODEL,
    *,
    backend: str = DEFAULT_BACKEND,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    log: Callable[[str], None] = lambda _: None,
) -> LanguageModel:
    """Load a model by name: an embedded one, a local folder (of an intervention, too), a ``.gguf`` file or a hub id.

    backend  what computes: a name in ``BACKENDS``, which may know models by other names
    device   auto | cpu | cuda | mps
    dtype    auto (measured) | fp32 | bf16 | fp16
    log      is told what takes time (a first download)

    Raises InputError for an unknown backend, ModelNotFoundError or ModelError, each with a hint.
    """
    load = find_backend(backend)
    how: dict[str, Any] = {"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code, "log": log}

    def load_base(base: str) -> LanguageModel:
        return load_model(base, backend=backend, **how)

    if is_saved(name):
        return load_saved(name, load_base, log)
    if os.path.isfile(user_path(name) / ADAPTER):
        from conviction.models.adapters import load_adapter

        return load_adapter(name, ADAPTER, load_base, trust_remote_code=trust_remote_code)
    engine, place = load(name, **how), user_path(name)
    loaded = _with_engine(engine, id=name, source=str(place.resolve()) if place.exists() else name)
    loaded.backend = backend
    return loaded


def _with_engine(engine: Engine, *, id: str, source: str) -> EngineModel:
    """The model over an engine; checked here, for a foreign one can fail in any way."""
    try:
        if not engine.trainable:
            return EngineModel(id=id, engine=engine, source=source)
        from conviction.models.hf import HFModel

        return HFModel(id=id, engine=engine, source=source)
    except ConvictionError:
        raise
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        hint = "check that it is a complete causal language model"
        raise ModelError(f"cannot load '{id}': {first}", hint=hint) from error
