"""Weights that are stored as codes with scales (bitsandbytes, FP8, GPTQ, AWQ): what may be done with them.

Scoring goes through the modules' own ``forward``, which reads the codes. What adds to weights needs numbers: where
transformers can turn a format's codes back into numbers, a copy is made of these.
"""

from __future__ import annotations

import copy
from typing import Any

from conviction.errors import InputError
from conviction.models.engine.torch_engine import TorchEngine
from conviction.models.hf import HFModel


def stored_as(model: HFModel) -> str | None:
    """The method by which the weights are quantised, as transformers names it; None: they are numbers."""
    settings: Any = getattr(model.module.config, "quantization_config", None)
    if settings is None:
        return None
    method = settings.get("quant_method") if isinstance(settings, dict) else settings.quant_method
    return str(getattr(method, "value", method))


def dequantised(model: HFModel) -> HFModel:
    """The model itself if its weights are numbers, else a copy of it with weights that are.

    The copy takes four (from 8 bits) to eight times the memory in fp32, half of that in bf16. Raises InputError
    where transformers has no way back from the format.
    """
    method = stored_as(model)
    if method is None:
        return model
    module = copy.deepcopy(model.module)
    module.state_dict()  # bitsandbytes packs 4-bit codes anew at the first pass on a CPU, and undoes it only here
    try:
        module = module.dequantize()
    except (NotImplementedError, ValueError) as error:
        raise InputError(
            f"the weights of {model.id} are stored as codes ({method}), which cannot be added to",
            hint="load a copy that is not quantised, or a .gguf file, which is unpacked; probe, audit and prompts work",
        ) from error
    module.requires_grad_(False)
    return HFModel(id=model.id, engine=TorchEngine(module, model.tokenizer), source=model.source)
