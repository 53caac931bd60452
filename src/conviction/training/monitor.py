"""The guard at work on one model: it reads what the sensors read from, and judges; copies of a healthy state."""

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
    DriftMonitor,
    Logits,
    choose_samples,
    held_out_rows,
    read_drift,
    read_samples,
)
from conviction.training.guard import Guard, GuardVerdict, judge, sampling_is_due
from conviction.training.sensors import SENSORS, DriftMetrics, StepReading

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
class GuardMonitor:
    """State of the guard over one run. ``begin`` it before the first step, ``check`` after each.

    drift          what is read after every step, and its metrics on the untouched model (``first``); None: a guard
                   in mode none, which reads nothing
    first_samples  the untouched model's greedy answers to ``prompts``; samples, those after the last step, if due
    sampled        whether they were due
    begins_random  the model has learnt nothing yet: there is no health to lose
    """

    guard: Guard
    model: HFModel
    logits: Logits
    prompts: Sequence[tuple[Message, ...]]
    total_steps: int
    drift: DriftMonitor | None
    first: DriftMetrics | None
    first_samples: Sequence[Generation]
    begins_random: bool = False
    history: list[StepReading] = field(default_factory=list)
    verdict: GuardVerdict = field(default_factory=lambda: GuardVerdict("healthy"))
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
        begins_random: bool = False,
    ) -> GuardMonitor:
        """Read the untouched model: all later readings are differences from it.

        own       conversations of the training data; samples answer two of them, and everyday questions
        held_out  conversations that are not trained on, where entropy is read; none: everyday questions

        A guard in mode none reads nothing.
        """
        if guard.mode == "none":
            return cls(guard, model, logits, (), total_steps, None, None, (), begins_random)
        limit = model.encoder.context_length

        def fits(prompt: tuple[Message, ...]) -> bool:
            return limit is None or len(model.encoder.encode_prompt(prompt)) + guard.sample_tokens <= limit

        everyday = [p for question in EVERYDAY if fits(p := chat(question))]
        read = list(filter(fits, held_out))[:HELD_OUT] or everyday[:HELD_OUT]
        asked = [*filter(fits, own[:2]), *everyday]
        answers = model.generate([*asked, *read], max_new_tokens=guard.sample_tokens)
        rows = held_out_rows([model.encoder.encode_prompt(p) for p in read], answers[len(asked) :])
        drift = DriftMonitor.prepare(model.encoder.encode_text, rows)
        prompts, samples = choose_samples(asked, answers[: len(asked)])
        if begins_random:  # its samples are noise, and begin so
            prompts, samples = [], []
        first = drift.read(logits, model.device)
        return cls(guard, model, logits, prompts, total_steps, drift, first, samples, begins_random)

    def check(
        self, step: int, *, loss: float, grad_norm: float, margin: float | None = None, chosen_drop: float | None = None
    ) -> GuardVerdict:
        """Take a reading after ``step`` (from 1) and judge it. Greedy samples are written where they are due."""
        reading = StepReading(step=step, loss=loss, grad_norm=grad_norm, margin=margin, chosen_drop=chosen_drop)
        reading = dataclasses.replace(reading, readings=self._read(reading))
        self.samples = ()
        verdict = self._judge(reading)
        due = step == self.total_steps or sampling_is_due(step, self.guard, verdict)
        self.sampled = verdict.zone != "stop" and due
        if self.sampled and self.prompts:
            self.samples = self.model.generate(self.prompts, max_new_tokens=self.guard.sample_tokens)
            sampled = read_samples(self.prompts, self.first_samples, self.samples)
            reading = dataclasses.replace(reading, readings={**reading.readings, **sampled})
            verdict = self._judge(reading)
        self.history.append(reading)
        self.verdict = verdict
        return verdict

    def _judge(self, reading: StepReading) -> GuardVerdict:
        return judge([*self.history, reading], self.guard, self.total_steps, begins_random=self.begins_random)

    def _read(self, step: StepReading) -> dict[str, float]:
        """What the sensors read after every step, by their names; what does not apply is left out."""
        if self.drift is None or self.first is None:
            return {}
        taken = {s.name: s.read_step(step) for s in SENSORS.values() if s.read_step is not None}
        drifted = read_drift(self.first, self.drift.read(self.logits, self.model.device))
        return drifted | {name: value for name, value in taken.items() if value is not None}

    @property
    def healthy_sample(self) -> bool:
        """Whether greedy samples were due and no limit was passed: a state worth keeping."""
        return self.sampled and not self.verdict.violations

    def record(self) -> dict[str, Any]:
        """The last reading and verdict, for ``steps.jsonl``; what was not read is None."""
        readings, sensors = self.history[-1].readings, SENSORS.values()
        record: dict[str, Any] = {"zone": self.verdict.zone}
        record |= {s.name: readings.get(s.name) for s in sensors if s.read_step or s.read_drift}
        sample = {s.name: readings[s.name] for s in sensors if s.read_samples and s.name in readings}
        record |= {"sample": sample or None}
        record |= {"violations": list(self.verdict.violations), "warnings": list(self.verdict.warnings)}
        if self.samples:
            record["samples"] = [
                {"prompt": p[-1].content, "text": g.text} for p, g in zip(self.prompts, self.samples, strict=True)
            ]
        return record

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "history": [dataclasses.asdict(r) for r in self.history],
            "verdict": dataclasses.asdict(self.verdict),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state`` gave."""
        self.history = [StepReading(**values) for values in state["history"]]
        verdict = state["verdict"]
        self.verdict = GuardVerdict(verdict["zone"], tuple(verdict["violations"]), tuple(verdict["warnings"]))
