"""``.gguf`` files: read by transformers, as plain weights.

transformers would keep the weights packed, and unpack them in every multiplication: five questions
to Gemma-3-270m in Q4_K_M took 76 s so, in bf16, on two cores. They are unpacked once, to float32, which is exact.
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Iterator
from typing import Any

import gguf
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from conviction.models.devices import to_dtype
from conviction.models.weight_files import check_loaded, checked_loading


@contextlib.contextmanager
def parsed_once() -> Iterator[None]:
    """While it is open a file is parsed once: configuration, tokenizer and weights each do, 20 s for 262,144 tokens."""
    reader = gguf.GGUFReader
    gguf.GGUFReader = functools.cache(reader)  # a name that transformers looks up when it reads
    try:
        yield
    finally:
        gguf.GGUFReader = reader


def read_gguf(source: dict[str, Any], dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Module and tokenizer of a file. ``source``: ``from_pretrained``'s arguments, ``gguf_file`` among them."""
    with contextlib.redirect_stderr(io.StringIO()):  # the reader's own progress bars, which no setting silences
        tokenizer = AutoTokenizer.from_pretrained(**source)
        wanted = {"output_loading_info": True, "ignore_mismatched_sizes": True}
        with checked_loading(source["gguf_file"]):
            module, info = AutoModelForCausalLM.from_pretrained(**source, **wanted, dtype=torch.float32)
    check_loaded(info, source["gguf_file"])
    # The weights are plain now; the leftover label would forbid saving them, or training.
    if hasattr(module.config, "quantization_config"):
        del module.config.quantization_config
    module.is_quantized, module.hf_quantizer = False, None
    to_dtype(module, dtype)
    return module, tokenizer
