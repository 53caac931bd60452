"""Choose device and dtype: by flag, else by what there is and what is measured."""

from __future__ import annotations

import os
import time

import torch

from conviction.errors import InputError, nearest

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WIDEST = 4096
"""Of the matrices that a dtype is measured with: wider ones tell the same, and a configuration may ask for any."""
KNOWN = DTYPES | {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}  # torch's names, too


def choose_device(name: str) -> torch.device:
    """``auto`` takes CUDA, then MPS, then the CPU."""
    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if torch.cuda.is_available():
        available.insert(0, "cuda")
    if name == "auto":
        # under accelerate launch or torchrun each process has a GPU of its own
        own = os.environ.get("LOCAL_RANK") if available[0] == "cuda" else None
        return torch.device(available[0] if own is None else f"cuda:{own}")
    kind, _, index = name.partition(":")
    known = index == "" or (kind == "cuda" and index.isdigit() and int(index) < torch.cuda.device_count())
    if kind in available and known:
        return torch.device(name)
    raise InputError(f"device '{name}' is not available here{_reason(kind)}", hint=_device_hint(name, kind, available))


def _reason(kind: str) -> str:
    """What is missing for a device that exists elsewhere."""
    if kind == "mps":
        return ": it needs a Mac with Apple silicon, and a PyTorch that was built for it"
    if kind != "cuda":
        return ""
    if torch.cuda.is_available():
        return f": {torch.cuda.device_count()} CUDA device(s) are visible, numbered from 0"
    if torch.version.cuda is None and torch.version.hip is None:
        return f": this PyTorch ({torch.__version__}) was built without CUDA"
    return ": PyTorch sees no GPU"


def _device_hint(name: str, kind: str, available: list[str]) -> str:
    if kind not in {"cuda", "mps"}:
        return f"{nearest(name, ['auto', 'cpu', 'cuda', 'mps'])}use one of: auto, {', '.join(available)}"
    if kind in available:
        return f"use one of: auto, {', '.join(available)}"
    if kind == "cuda" and torch.version.cuda is None and torch.version.hip is None:
        return "use --device cpu, or install a PyTorch with CUDA (https://pytorch.org/get-started/locally)"
    if kind == "cuda":
        return "use --device cpu, or look at `nvidia-smi` and CUDA_VISIBLE_DEVICES"
    return f"use --device {available[0]}"


def check_dtype_name(name: str) -> None:
    """Raise InputError for a dtype that does not exist."""
    if name != "auto" and name not in KNOWN:
        hint = f"{nearest(name, ['auto', *KNOWN])}use one of: {', '.join(['auto', *DTYPES])}"
        raise InputError(f"unknown dtype '{name}'", hint=hint)


def choose_dtype(name: str, device: torch.device, hidden: int, inner: int) -> tuple[torch.dtype, str]:
    """A dtype and the reason for it.

    On a CPU the model's own MLP shape, up to ``WIDEST``, is multiplied in both dtypes (some 20 ms)
    and bf16 is taken where it is at least 1.4 times as fast; elsewhere GPUs with
    bf16 use it.
    """
    check_dtype_name(name)
    if name != "auto":
        return KNOWN[name], "asked for"
    if device.type == "cuda":
        good = torch.cuda.is_bf16_supported()
        return (torch.bfloat16 if good else torch.float16), "GPU default"
    if device.type == "mps":
        return torch.bfloat16, "GPU default"
    hidden, inner = min(hidden, WIDEST), min(inner, WIDEST)
    gain = _seconds(torch.float32, hidden, inner) / _seconds(torch.bfloat16, hidden, inner)
    dtype = torch.bfloat16 if gain >= 1.4 else torch.float32
    return dtype, f"measured: bf16 multiplies {gain:.1f}x as fast as fp32 here"


def _seconds(dtype: torch.dtype, hidden: int, inner: int) -> float:
    """Best of several multiplications [256, hidden] x [hidden, inner] with fresh weights each."""
    x = torch.ones(256, hidden, dtype=dtype)
    weights = [torch.ones(inner, hidden, dtype=dtype) for _ in range(4)]
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        for w in weights:
            torch.nn.functional.linear(x, w)
        best = min(best, time.perf_counter() - start)
    return best


def to_dtype(module: torch.nn.Module, dtype: torch.dtype) -> None:
    """Give all parameters one dtype. Buffers stay as they are: rounded rotary frequencies would be another model."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)
