"""The command `models`."""

from __future__ import annotations

import os
from pathlib import Path

from conviction.cli.options import FormatOption
from conviction.views.text import log, show

__all__ = ["models"]


def models(form: FormatOption = "text") -> None:
    """List the models that are known here, and which are cached."""
    from conviction.core.storage import cache_dir
    from conviction.models.backends import BACKENDS
    from conviction.models.embedded import EMBEDDED, hub_models

    body = [
        [m.name, m.title, m.licence, f"{_megabytes(m.folder)} MB in {m.folder}" if m.cached else "not yet fetched"]
        for m in EMBEDDED.values()
    ]
    body += [[name, "in the hub's cache", "", size] for name, size in hub_models()]
    show(
        "Models (any hub id, local folder or .gguf file works too)",
        ["name", "what", "licence", "cached"],
        body,
        form,
    )
    log(f"backends (--backend): {', '.join(BACKENDS)}")
    log(f"cache: {cache_dir()} (CONVICTION_CACHE chooses another; safe to delete)")


def _megabytes(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*") if os.path.isfile(f)) // 2**20
