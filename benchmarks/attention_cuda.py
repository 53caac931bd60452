"""Attention with a mask on a CUDA device: milliseconds at the first call with a new shape, and afterwards.

    python -m benchmarks.attention_cuda

Packs hardly ever have the shape of another, so that what a kernel does once for a shape is done every time.
Grouped heads (nine queries to three keys, as in the embedded model), bf16, with and without a backward pass to the
queries.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.machine import save
from conviction.models.engine.attention import WITHOUT_PLANS

SHAPES, AGAIN = 10, 10
WAYS: dict[str, tuple[Callable[[], AbstractContextManager[None]], bool]] = {
    "grouped, torch's choice": (nullcontext, False),
    "grouped, without plans": (lambda: sdpa_kernel(WITHOUT_PLANS), False),
    "repeated, torch's choice": (nullcontext, True),
    "repeated, without plans": (lambda: sdpa_kernel(WITHOUT_PLANS), True),
    "repeated, cuDNN": (lambda: sdpa_kernel(SDPBackend.CUDNN_ATTENTION), True),
    "repeated, math": (lambda: sdpa_kernel(SDPBackend.MATH), True),
}


def main() -> None:
    """Measure, print, save."""
    rows = []
    for backward in (False, True):
        for number, name in enumerate(WAYS):
            offset = number + len(WAYS) * backward  # no shape occurs twice
            rows.append({"way": name, "backward": backward, **_measure(name, offset, backward=backward)})
            print(json.dumps(rows[-1]))
    save("attention_cuda", {"device": torch.cuda.get_device_name(), "rows": rows})


def _measure(name: str, offset: int, *, backward: bool) -> dict[str, float]:
    context, repeated = WAYS[name]
    first, again = [], []
    for i in range(SHAPES):
        attend = _case(2 + i % 3, 90 + 37 * i + offset, 63 * (i % 2), repeated=repeated, backward=backward)
        with context():
            first.append(_seconds(attend, 1))
            again.append(_seconds(attend, AGAIN))
    # the very first call loads the kernel's library, too
    return {"first_ms": 1e3 * statistics.mean(first[1:]), "again_ms": 1e3 * statistics.mean(again)}


def _case(members: int, nodes: int, prefix: int, *, repeated: bool, backward: bool) -> Callable[[], Tensor]:
    like = {"device": "cuda", "dtype": torch.bfloat16}
    query = torch.randn(members, 9, nodes, 64, requires_grad=backward, **like)
    key, value = (torch.randn(members, 3, prefix + nodes, 64, **like) for _ in range(2))
    hidden = torch.rand(members, 1, nodes, prefix + nodes, device="cuda") < 0.5
    hidden[..., 0] = False  # a row that sees nothing would be NaN
    mask = torch.zeros(hidden.shape, **like).masked_fill_(hidden, float("-inf"))

    def attend() -> Tensor:
        k, v = (x.repeat_interleave(3, dim=1) for x in (key, value)) if repeated else (key, value)
        out = scaled_dot_product_attention(query, k, v, attn_mask=mask, enable_gqa=not repeated)
        if backward:
            out.sum().backward()
        return out

    return attend


def _seconds(call: Callable[[], Tensor], times: int) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(times):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / times


if __name__ == "__main__":
    main()
