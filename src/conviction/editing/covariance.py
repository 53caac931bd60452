"""Second moments of keys: what a memory is used for besides the fact that is written.

C = E[k kᵀ] over ordinary text. About ten tokens per dimension are enough
(2506.04226), not the 44 million of ROME's code. The first position is left
out: its activations are an attention sink, thousands of times larger than any
other's, and would be all that C knows.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from conviction.core.gate import is_file
from conviction.core.protocols import Progress
from conviction.core.storage import cache_dir, storage_errors
from conviction.editing.sites import Site
from conviction.errors import InputError
from conviction.models.fingerprint import fingerprint
from conviction.models.hf import HFModel
from conviction.models.states import Stop, hooked, stopping

__all__ = ["PER_DIMENSION", "covariances"]

PER_DIMENSION = 10
ROW = 256  # tokens read at once


def covariances(
    model: HFModel,
    sites: Sequence[Site],
    texts: Sequence[str],
    *,
    damped: bool = True,
    progress: Progress | None = None,
    log: Callable[[str], None] | None = None,
) -> dict[int, Tensor]:
    """Layer → fp32 [width, width], from the cache where it is known.

    damped  with a hundredth of its mean diagonal added: it can then be inverted. A null space is one of the
            moment itself
    log     is told where the texts hold fewer than ``PER_DIMENSION`` tokens a dimension

    Raises InputError for texts that hold fewer tokens than a key has dimensions.
    """
    # All that the model computes with: a steered model's keys are not those of its weights alone.
    digest = hashlib.sha256("\0".join([fingerprint(model.module), *texts]).encode()).hexdigest()[:24]
    place = cache_dir() / "covariances" / digest
    results = {site.layer: known for site in sites if (known := _cached(place, site)) is not None}
    missing = [site for site in sites if site.layer not in results]
    if missing:
        for layer, moment in _compute(model, missing, texts, progress, log).items():
            with storage_errors(f"writing {place}"):
                place.mkdir(parents=True, exist_ok=True)
                part = place / f".{layer}-{secrets.token_hex(8)}"  # its own: two commands may compute the same
                save_file({"moment": moment}, part, metadata={"checksum": _checksum(moment)})
                part.replace(place / f"{layer}.safetensors")
            results[layer] = moment
    return {layer: _damped(moment) for layer, moment in results.items()} if damped else results


def _cached(place: Path, site: Site) -> Tensor | None:
    """None where there is none, and for one that is not as it was written: it is computed again."""
    path = place / f"{site.layer}.safetensors"
    try:
        if not is_file(path):
            return None
        with safe_open(path, framework="pt") as file:
            moment, checksum = file.get_tensor("moment"), (file.metadata() or {}).get("checksum")
        sound = tuple(moment.shape) == (site.width, site.width) and checksum == _checksum(moment)
    except Exception:  # a damaged file fails in any way
        return None
    return moment if sound else None


def _checksum(moment: Tensor) -> str:
    return xxhash.xxh3_128_hexdigest(moment.contiguous().flatten().view(torch.uint8).numpy().tobytes())


@torch.inference_mode()
def _compute(
    model: HFModel,
    sites: Sequence[Site],
    texts: Sequence[str],
    progress: Progress | None,
    log: Callable[[str], None] | None,
) -> dict[int, Tensor]:
    """One pass over the text for all sites; blocks after the last of them are not run."""
    width = max(site.width for site in sites)
    sums = {site.layer: torch.zeros(site.width, site.width) for site in sites}
    rows = _rows(model, texts, PER_DIMENSION * width)
    count = sum(len(row) - 1 for row in rows)
    if count < width:
        raise InputError(
            f"the text for the covariance holds {count} tokens, fewer than a key's {width} dimensions",
            hint="give -o text=FILE with ordinary prose, ten tokens a dimension are enough",
        )
    if count < PER_DIMENSION * width and log is not None:
        log(
            f"the covariance of keys is read from {count / width:.1f} tokens a dimension, {PER_DIMENSION} are advised: "
            "give -o text=FILE with more prose"
        )

    def add(site: Site) -> Any:
        def hook(_module: Any, inputs: Any, _output: Any) -> None:
            keys = inputs[0][0, 1:].float()
            sums[site.layer].addmm_(keys.T.cpu(), keys.cpu())

        return hook

    last = max(sites, key=lambda site: site.layer)
    for done, row in enumerate(rows, start=1):
        with hooked(*((site.linear, add(site)) for site in sites), (last.block, stopping)), suppress(Stop):
            model.module.base_model(input_ids=torch.tensor([row], device=model.device), use_cache=False)
        if progress is not None:
            progress(done, len(rows))
    return {layer: moment / count for layer, moment in sums.items()}


def _rows(model: HFModel, texts: Sequence[str], wanted: int) -> list[tuple[int, ...]]:
    """Pieces of the texts, each with the tokenizer's beginning, until there are enough tokens."""
    limit = min(ROW, model.encoder.context_length or ROW)
    rows: list[tuple[int, ...]] = []
    count = 0
    for text in texts:
        ids = model.encoder.encode_text(text)
        for start in range(0, len(ids), limit):
            if count >= wanted:
                return rows
            row = ids[start : start + limit]
            if len(row) > 1:
                rows.append(row)
                count += len(row) - 1
    return rows


def _damped(moment: Tensor) -> Tensor:
    return moment + 0.01 * moment.diagonal().mean() * torch.eye(len(moment))
