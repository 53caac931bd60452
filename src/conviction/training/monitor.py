"""The guard at work on one model: it reads the instruments, judges, and keeps the last healthy state."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from conviction.core.protocols import Generation, Message, chat
from conviction.models.hf import HFModel
from conviction.training.drift import (
    EVERYDAY,
    DriftMetrics,
    DriftMonitor,
    Logits,
    choose_samples,
    held_out_rows,
    read_samples,
)
from conviction.training.guard import Guard, GuardVerdict, SampleReading, StepReading, judge, sampling_is_due

__all__ = ["Monitor", "Snapshot", "like", "whole"]

HELD_OUT = 3


@dataclass
class Snapshot:
    """Copies of the trained tensors at ``step``, in the memory of the CPU."""

    step: int
    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, step: int, named: Iterable[tuple[str, nn.Parameter]]) -> Snapshot:
        """Take one."""
        return cls(step, {name: whole(p).to("cpu", copy=True) for name, p in named})

    @torch.no_grad()
    def restore(self, named: Iterable[tuple[str, nn.Parameter]]) -> None:
        """Put the tensors back."""
        for name, parameter in named:
            parameter.copy_(like(self.tensors[name], parameter))


def whole(tensor: Tensor) -> Tensor:
    """A tensor without its graph; gathered from all processes where FSDP keeps it in parts."""
    bare = tensor.detach()
    return bare.full_tensor() if isinstance(bare, DTensor) else bare


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor on the device of ``parameter``, and in parts where that is."""
    moved = tensor.to(parameter.device)
    if isinstance(parameter.data, DTensor):
        return distribute_tensor(moved, parameter.data.device_mesh, parameter.data.placements)
    return moved


@dataclass
class Monitor:
    """State of the guard over one run. ``begin`` it before the first step, ``check`` after each."""

    guard: Guard
    model: HFModel
    logits: Logits
    prompts: Sequence[tuple[Message, ...]]
    total_steps: int
    sensors: DriftMonitor | None
    first: DriftMetrics | None
    first_samples: Sequence[Generation]
    history: list[StepReading] = field(default_factory=list)
    judgement: GuardVerdict = field(default_factory=lambda: GuardVerdict("healthy"))
    samples: Sequence[Generation] = ()
    sampled: bool = False

    @classmethod
    def begin(
        cls,
        guard: Guard,
        model: HFModel,
        logits: Logits,
        *,
        own: Sequence[tuple[Message, ...]],
        held_out: Sequence[tuple[Message, ...]],
        total_steps: int,
    ) -> Monitor:
        """Read the untouched model: all later readings are differences from it.

        own       conversations of the training data; samples answer two of them, and everyday questions
        held_out  conversations that are not trained on, where entropy is read; none: everyday questions

        A blind guard has no instruments.
        """
        if guard.mode == "none":
            return cls(guard, model, logits, (), total_steps, None, None, ())
        limit = model.encoder.context_length

        def fits(prompt: tuple[Message, ...]) -> bool:
            return limit is None or len(model.encoder.encode_prompt(prompt)) + guard.sample_tokens <= limit

        everyday = [p for question in EVERYDAY if fits(p := chat(question))]
        read = list(filter(fits, held_out))[:HELD_OUT] or everyday[:HELD_OUT]
        asked = [*filter(fits, own[:2]), *everyday]
        answers = model.generate([*asked, *read], max_new_tokens=guard.sample_tokens)
        rows = held_out_rows([model.encoder.encode_prompt(p) for p in read], answers[len(asked) :])
        sensors = DriftMonitor.prepare(model.encoder.encode_text, rows)
        prompts, samples = choose_samples(asked, answers[: len(asked)])
        return cls(guard, model, logits, prompts, total_steps, sensors, sensors.read(logits, model.device), samples)

    def check(
        self, step: int, *, loss: float, grad_norm: float, margin: float | None = None, chosen_drop: float | None = None
    ) -> GuardVerdict:
        """Take a reading after ``step`` (from 1) and judge it. Greedy samples are written where they are due."""
        numbers = {"loss": loss, "grad_norm": grad_norm, "margin": margin, "chosen_drop": chosen_drop}
        reading = StepReading(step=step, **numbers, **self._drift())  # type: ignore[arg-type]
        self.samples = ()
        judged = judge([*self.history, reading], self.guard, self.total_steps)
        self.sampled = judged.zone != "stop" and (step == self.total_steps or sampling_is_due(step, self.guard, judged))
        if self.sampled and self.prompts:
            self.samples = self.model.generate(self.prompts, max_new_tokens=self.guard.sample_tokens)
            sampled = read_samples(self.prompts, self.first_samples, self.samples)
            reading = dataclasses.replace(reading, sample=sampled)
            judged = judge([*self.history, reading], self.guard, self.total_steps)
        self.history.append(reading)
        self.judgement = judged
        return judged

    def _drift(self) -> dict[str, float]:
        """How far the instruments moved; what is not read is left out."""
        if self.sensors is None or self.first is None:
            return {}
        first, now = self.first, self.sensors.read(self.logits, self.model.device)
        drift = {"neutral_drop": first.neutral - now.neutral}
        if self.sensors.held_out:
            drift["entropy_change"] = now.entropy / max(first.entropy, 1e-6) - 1
            drift["top_mass_drop"] = first.top_mass - now.top_mass
        return drift

    @property
    def healthy_sample(self) -> bool:
        """Whether greedy samples were due and no limit was passed: a state worth keeping."""
        return self.sampled and not self.judgement.violations

    def record(self) -> dict[str, Any]:
        """The last reading and judgement, for ``steps.jsonl``."""
        reading = dataclasses.asdict(self.history[-1])
        keep = {k: reading[k] for k in ("neutral_drop", "entropy_change", "top_mass_drop", "sample")}
        judged = self.judgement
        found: dict[str, Any] = {"zone": judged.zone, **keep}
        found |= {"violations": list(judged.violations), "warnings": list(judged.warnings)}
        if self.samples:
            found["samples"] = [
                {"prompt": p[-1].content, "text": g.text} for p, g in zip(self.prompts, self.samples, strict=True)
            ]
        return found

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "history": [dataclasses.asdict(r) for r in self.history],
            "judgement": dataclasses.asdict(self.judgement),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state`` gave."""

        def reading(values: Mapping[str, Any]) -> StepReading:
            sample = values["sample"]
            return StepReading(**{**values, "sample": None if sample is None else SampleReading(**sample)})

        self.history = [reading(values) for values in state["history"]]
        judged = state["judgement"]
        self.judgement = GuardVerdict(judged["zone"], tuple(judged["violations"]), tuple(judged["warnings"]))
