"""What an adapter's folder says of it, checked before PEFT builds anything: types, ranges, and patterns that end."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from conviction.core.gate import is_file, read_json, validate
from conviction.core.wording import printable
from conviction.errors import ModelError
from conviction.models.sandbox import LimitExceeded, TaskFailed, try_patterns

__all__ = ["ADAPTER", "WEIGHTS", "AdapterConfig", "check_patterns", "check_weights_file", "read_adapter_config"]

ADAPTER, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
HINT = "check that it is a complete LoRA adapter in PEFT's format, with its weights as safetensors"
MOST_BYTES = 16 * 2**20  # of a configuration: it may name every module, with a rank
MOST_RANK, MOST_ALPHA = 16_384, 1e6
PLAIN = re.compile(r"[\w.\-]{1,200}")  # a name, as a pattern: it cannot backtrack
MANY = 1_000  # plain patterns, which are not tried beforehand

Names = list[str]


class AdapterConfig(BaseModel):
    """The fields of PEFT's ``LoraConfig`` that decide what is built, and whether it comes to an end.

    What makes PEFT import or repeat something (megatron_config, layer_replication) is refused.
    """

    model_config = ConfigDict(strict=True, extra="allow")

    peft_type: Literal["LORA"] = "LORA"
    r: int = Field(default=8, ge=1, le=MOST_RANK)
    lora_alpha: float = Field(default=8, ge=-MOST_ALPHA, le=MOST_ALPHA)
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    bias: Literal["none", "all", "lora_only"] = "none"
    fan_in_fan_out: bool = False
    use_rslora: bool = False
    use_dora: bool = False
    lora_bias: bool = False
    init_lora_weights: bool | str | None = True
    target_modules: str | Names | None = None
    exclude_modules: str | Names | None = None
    modules_to_save: Names | None = None
    target_parameters: Names | None = None
    layers_pattern: str | Names | None = None
    layers_to_transform: int | list[int] | None = None
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None
    megatron_config: None = None
    layer_replication: None = None

    def patterns(self) -> Iterator[str]:
        """All that PEFT matches names of modules with."""
        for some in (self.target_modules, self.exclude_modules, self.layers_pattern):
            yield from [some] if isinstance(some, str) else some or ()
        yield from self.modules_to_save or ()
        yield from self.rank_pattern or ()
        yield from self.alpha_pattern or ()


def read_adapter_config(folder: Path) -> AdapterConfig:
    """The adapter's configuration. Raises ModelError, naming file and field."""
    path = folder / ADAPTER
    config = validate(
        AdapterConfig, read_json(path, ModelError, hint=HINT, most=MOST_BYTES), printable(path), ModelError, hint=HINT
    )
    for field, values, most in (
        ("rank_pattern", config.rank_pattern, MOST_RANK),
        ("alpha_pattern", config.alpha_pattern, MOST_ALPHA),
    ):
        for name, value in (values or {}).items():
            if not (0 < value <= most or (field == "alpha_pattern" and abs(value) <= most)):
                where = f"{printable(path)}: field '{field}.{printable(name)[:80]}'"
                raise ModelError(f"{where} is {printable(value)[:40]}, beyond {most:g}", hint=HINT)
    return config


def check_weights_file(folder: Path) -> None:
    """Raise ModelError for an adapter without weights, or whose weights are a pickle."""
    if not is_file(folder / WEIGHTS):
        pickled = [name for name in ("adapter_model.bin", "adapter_model.pt") if is_file(folder / name)]
        what = f"its weights are a pickle ({pickled[0]}), which is never opened" if pickled else f"no file {WEIGHTS}"
        raise ModelError(
            f"{printable(folder)}: {what}", hint="save it with `save_pretrained`, which writes safetensors"
        )


def check_patterns(config: AdapterConfig, names: Collection[str], where: Any) -> None:
    """Raise ModelError for patterns that are none, or take too long on the names of a model's modules."""
    patterns = list(dict.fromkeys(config.patterns()))
    if len(patterns) <= MANY and all(PLAIN.fullmatch(pattern) for pattern in patterns):
        return
    hint = "write the names of modules out: target_modules takes a list"
    try:
        try_patterns(patterns, names)
    except LimitExceeded as error:
        raise ModelError(
            f"{printable(where)}: matching its patterns does not come to an end: {error}", hint=hint
        ) from error
    except TaskFailed as error:
        raise ModelError(f"{printable(where)}: a pattern is none: {printable(error)}", hint=hint) from error
