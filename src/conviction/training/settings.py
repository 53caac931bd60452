"""How to train: what moves (``Weights``) and how it moves (``Training``). No torch here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from conviction.core.options import check_settings, setting
from conviction.errors import InputError

MOST_STEPS = 10_000_000
"""No run takes more optimiser steps."""
LEAST_STEPS = 24  # of a run on few examples, where nothing else is given: one epoch of 54 pairs hardly moves a model


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Which weights move: a LoRA adapter (Hu et al. 2106.09685) or the model's own."""

    tune: Literal["lora", "full"] = setting("lora", "an adapter, or the model's own weights")
    rank: int = setting(8, "rank r of the LoRA matrices", at_least=1, at_most=65_536)
    alpha: float = setting(16.0, "LoRA alpha: the update is multiplied by alpha / rank", above=0)
    scale: float | None = setting(None, "multiplies the LoRA update directly, in place of alpha / rank (MLX)", above=0)
    dropout: float = setting(0.0, "LoRA dropout", at_least=0, below=1)
    target_modules: tuple[str, ...] | None = setting(
        None, "names of the linear layers with LoRA; none: all but the head"
    )
    num_layers: int | None = setting(None, "train only the last N layers, as MLX means it; none: all", at_least=1)

    def __post_init__(self) -> None:
        check_settings(self)
        if self.tune == "full" and (self.scale is not None or self.target_modules is not None):
            raise InputError("tune=full has no LoRA settings", hint="leave scale and target_modules out, or tune=lora")

    @property
    def multiplier(self) -> float:
        """What B·A is multiplied by."""
        return self.alpha / self.rank if self.scale is None else self.scale


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the weights move. One step sees ``batch_size · gradient_accumulation`` examples, packed by tokens."""

    learning_rate: float = setting(5e-5, "peak learning rate of AdamW", above=0, sweepable=True)
    epochs: int | None = setting(
        None,
        "times that every example is seen; none: once, and again until max_steps, or 24 steps",
        at_least=1,
        at_most=10_000,
        sweepable=True,
    )
    max_steps: int | None = setting(
        None, "stop after so many optimiser steps", at_least=1, at_most=MOST_STEPS, sweepable=True
    )
    batch_size: int = setting(4, "examples in a batch", at_least=1, sweepable=True)
    gradient_accumulation: int = setting(1, "batches in one optimiser step", at_least=1, sweepable=True)
    warmup: float = setting(
        0.1, "share of the steps over which the learning rate rises", at_least=0, below=1, sweepable=True
    )
    schedule: Literal["constant", "linear", "cosine"] = setting(
        "linear", "how the rate falls after warm-up", sweepable=True
    )
    weight_decay: float = setting(0.0, "AdamW weight decay", at_least=0, sweepable=True)
    max_grad_norm: float = setting(1.0, "gradients are clipped to this norm", above=0, sweepable=True)
    seed: int = setting(0, "of the order of examples, the adapter and dropout", at_least=0, at_most=2**63 - 1)
    max_length: int | None = setting(
        None, "longest example in tokens; longer ones are left out and reported; none: the model's context", at_least=2
    )
    token_budget: int | None = setting(
        None, "tokens in one forward pass; none: chosen by device", at_least=1, at_most=100_000_000
    )
    precision: Literal["auto", "fp32", "bf16"] = setting("auto", "arithmetic; auto: as the model was loaded")
    checkpointing: Literal["auto", "on", "off"] = setting(
        "auto", "recompute activations in the backward pass; auto: if memory would not suffice"
    )
    activation_cache_mb: int = setting(
        2048,
        "disk for activations entering the first trained layer (num_layers); 0: no such cache",
        at_least=0,
        at_most=100_000_000,
    )
    checkpoint_every: int = setting(25, "steps between checkpoints; 0: none", at_least=0)

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def examples_per_step(self) -> int:
        """The effective batch size."""
        return self.batch_size * self.gradient_accumulation

    def epochs_of(self, count: int) -> int:
        """Times that each of so many examples is seen."""
        if self.epochs is not None:
            return self.epochs
        an_epoch = max(1, math.ceil(count / self.examples_per_step))
        return max(1, math.ceil((self.max_steps or LEAST_STEPS) / an_epoch))
