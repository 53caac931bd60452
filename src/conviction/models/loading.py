"""Models by name: from a backend, or changed ones from the folders that interventions wrote."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conviction.core.gate import is_file
from conviction.core.protocols import LanguageModel
from conviction.core.storage import user_path
from conviction.core.wording import printable
from conviction.errors import (
    ConvictionError,
    InputError,
    ModelError,
    first_line,
    library_errors,
    no_memory,
    out_of_memory,
)
from conviction.models.adapter_config import ADAPTER
from conviction.models.backends import DEFAULT_BACKEND, find_backend
from conviction.models.engine.protocol import Engine
from conviction.models.fetching import check_fetching, named_by_user, named_in
from conviction.models.language_model import EngineModel
from conviction.models.saved import RECORD, load_saved

DEFAULT_MODEL = "smollm2-135m"
MOST_CHANGES = 16  # on each other; each is loaded on the one before


def load_model(
    name: str = DEFAULT_MODEL,
    *,
    backend: str = DEFAULT_BACKEND,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    base: str | None = None,
    log: Callable[[str], None] = lambda _: None,
) -> LanguageModel:
    """Load a model by name: an embedded one, a local folder (of an intervention, too), a ``.gguf`` file or a hub id.

    backend  what computes: a name in ``BACKENDS``, which may know models by other names
    device   auto | cpu | cuda | mps
    dtype    auto (measured) | fp32 | bf16 | fp16
    base     of an adapter or another change: the model that it is put on, in place of the one that its folder names.
             What a folder names is loaded if it is on this machine, and fetched only if it is given here
    log      is told what takes time (a first download)

    Raises InputError for an unknown backend, ModelNotFoundError or ModelError, each with a hint.
    """
    load = find_backend(backend)
    how: dict[str, Any] = {"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code, "log": log}

    def load_plain(plain: str) -> LanguageModel:
        engine, place = load(plain, **how), user_path(plain)
        loaded = _with_engine(engine, id=plain, source=str(place.resolve()) if os.path.lexists(place) else plain)
        loaded.backend = backend
        return loaded

    def load_changed(changed: str, own: str | None, above: tuple[Path, ...]) -> LanguageModel:
        """own: what the user names as the base at the end of the chain; above: folders that this is the base of."""
        record, folder = change_record(changed), user_path(changed).resolve()
        if record is None:
            return load_plain(changed)
        _check_chain((*above, folder))

        def load_base(named: str) -> LanguageModel:
            with named_in(str(record)):
                if named.startswith(("//", "\\\\")):  # a share: Windows would log in there
                    check_fetching(named)
                if own is None or change_record(named) is not None:
                    return load_changed(named, own, (*above, folder))
            with named_by_user():
                return load_changed(own, None, (*above, folder))

        if record.name == RECORD:
            return load_saved(changed, load_base, log)
        from conviction.models.adapters import load_adapter

        return load_adapter(changed, load_base, trust_remote_code=trust_remote_code)

    if base is not None:
        check_has_base(name)
    with library_errors():
        return load_changed(name, base, ())


def change_record(name: str) -> Path | None:
    """The file by which a model's name is the folder of a change, which names its base; None: it is none."""
    places = (user_path(name) / file for file in (RECORD, ADAPTER))
    return next((place for place in places if is_file(place)), None)


def check_has_base(name: str) -> None:
    """Raise InputError for a model that is no change of another."""
    if change_record(name) is None:
        raise InputError(
            f"'{name}' is no adapter or other change of a model, and has no base",
            hint=f"leave --base out, or load the folder of a change: it holds {ADAPTER} or {RECORD}",
        )


def _check_chain(folders: tuple[Path, ...]) -> None:
    """Raise ModelError for folders of changes, each the base of the one before, that come back or have no end."""
    last = folders[-1]
    if last in folders[:-1] or len(folders) > MOST_CHANGES:
        names = " → ".join(map(printable, folders[folders.index(last) :][-4:]))
        what = "its own base" if last in folders[:-1] else f"more than {MOST_CHANGES} changes on each other"
        raise ModelError(f"{printable(folders[0])} is {what}: {names}", hint="apply the interventions again")


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
        if out_of_memory(error):
            raise no_memory(error) from error
        hint = "check that it is a complete causal language model"
        raise ModelError(f"cannot load '{id}': {first_line(error)}", hint=hint) from error
