"""The guard at work on one model: it reads what the sensors read from, and judges; copies of a healthy state."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from conviction.core.protocols import Generation, Message, chat
from conviction.data.topic import Topic
from conviction.models.hf import HFModel
from conviction.probing.paired import Comparison
from conviction.training.drift import (
    EVERYDAY,
    DriftMonitor,
    Logits,
    RowMetrics,
    choose_samples,
    combined,
    held_out_rows,
    read_drift,
    read_samples,
    short_questions,
)
from conviction.training.guard import Guard, GuardVerdict, judge, limit_shares, sampling_is_due
from conviction.training.sensors import SENSORS, StepReading
from conviction.training.topic import TopicMonitor, topic_readings
from conviction.training.untouched import once

HELD_OUT = 3
UNREAD_TOPIC = (
    "the guard does not read the topic '{}': its train split has nothing that a sensor asks for, or its questions do "
    "not fit the model's context"
)


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


def dose_steps(total: int, doses: int) -> frozenset[int]:
    """The last steps of so many equal parts of a run."""
    return frozenset(math.ceil(total * (k + 1) / doses) for k in range(doses))


Conversation = tuple[Message, ...]


def _asked(
    model: HFModel, guard: Guard, own: Sequence[Conversation], held_out: Sequence[Conversation]
) -> tuple[list[Conversation], list[Conversation], list[Conversation]]:
    """What samples answer: usual and short questions; and where entropy is read. Only what fits the model."""
    limit = model.encoder.context_length

    def fits(prompt: Conversation) -> bool:
        return limit is None or len(model.encoder.encode_prompt(prompt)) + guard.sample_tokens <= limit

    everyday = [p for question in EVERYDAY if fits(p := chat(question))]
    short = [p for question in short_questions() if fits(p := chat(question))]
    return [*filter(fits, own[:2]), *everyday], short, list(filter(fits, held_out))[:HELD_OUT] or everyday[:HELD_OUT]


@dataclass
class GuardMonitor:
    """State of the guard over one run. ``begin`` it before the first step, ``check`` after each.

    drift          rows of which a part is read after every step; None: a guard in mode none, which reads nothing
    first          what was read of each row on the untouched model; ``latest``: when it was last read since
    topic          what is asked about the run's topic; None: it has none
    change         the judge's measurements after the last step, where they were due
    first_samples  the untouched model's greedy answers to ``prompts``; samples, those after the last step, if due
    sampled        whether they were due
    drift_read     whether all rows were read after the last step
    read_at        steps after which the topic is read, besides its own interval
    notes          what the user should know of what is not read
    begins_random  the model has learnt nothing yet: there is no health to lose
    """

    guard: Guard
    model: HFModel
    logits: Logits
    prompts: Sequence[tuple[Message, ...]]
    total_steps: int
    drift: DriftMonitor | None
    first: Mapping[int, RowMetrics]
    first_samples: Sequence[Generation]
    begins_random: bool = False
    topic: TopicMonitor | None = None
    change: Comparison | None = None
    latest: dict[int, RowMetrics] = field(default_factory=dict)
    history: list[StepReading] = field(default_factory=list)
    verdict: GuardVerdict = field(default_factory=lambda: GuardVerdict("healthy"))
    samples: Sequence[Generation] = ()
    sampled: bool = False
    drift_read: bool = False
    read_at: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()

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
        topic: Topic | None = None,
        step_tokens: float | None = None,
        doses: int = 0,
        scope: Hashable = None,
    ) -> GuardMonitor:
        """Read the untouched model: all later readings are differences from it.

        own       conversations of the training data; samples answer two of them, and everyday questions
        held_out  conversations that are not trained on, where entropy is read; none: everyday questions
        topic     what the run is about, whose train split is read; None: it is about none
        step_tokens  tokens of a training step on average, which say how often what is read may be read; None: not
                     known, everything is read after every step
        doses     parts of the run after each of which the topic is read, whatever that costs
        scope     all that what ``model`` answers depends on: answers may be known from other runs; None: it is asked

        A guard in mode none reads nothing.
        """
        if guard.mode == "none":
            return cls(guard, model, logits, (), total_steps, None, {}, (), begins_random)
        usual, short, read = _asked(model, guard, own, held_out)
        asked = [*usual, *short]
        answers = once(
            scope,
            ("answers", (*asked, *read), guard.sample_tokens),
            lambda: model.generate([*asked, *read], max_new_tokens=guard.sample_tokens),
        )
        rows = held_out_rows([model.encoder.encode_prompt(p) for p in read], answers[len(asked) :])
        drift = DriftMonitor.prepare(model.encoder.encode_text, rows, step_tokens=step_tokens)
        kinds = (slice(len(usual)), slice(len(usual), len(asked)))
        chosen = [choose_samples(asked[kind], answers[kind]) for kind in kinds]
        prompts, samples = ([x for part in parts for x in part] for parts in zip(*chosen, strict=True))
        about: TopicMonitor | None = None
        notes: tuple[str, ...] = ()
        if begins_random:  # its samples are noise, and begin so
            prompts, samples = [], []
        elif topic is not None:
            drift = drift.with_reference(logits, model.device)
            about = TopicMonitor.begin(model, topic, step_tokens, scope=scope)
            notes = () if about is not None else (UNREAD_TOPIC.format(topic.name),)
        first = drift.read_all(logits, model.device)
        return cls(
            guard, model, logits, prompts, total_steps, drift, first, samples, begins_random, about,
            read_at=dose_steps(total_steps, doses), notes=notes,
        )  # fmt: skip

    def check(
        self, step: int, *, loss: float, grad_norm: float, margin: float | None = None, chosen_drop: float | None = None
    ) -> GuardVerdict:
        """Take a reading after ``step`` (from 1) and judge it. Greedy samples are written where they are due."""
        reading = StepReading(step=step, loss=loss, grad_norm=grad_norm, margin=margin, chosen_drop=chosen_drop)
        reading = dataclasses.replace(reading, readings=self._read(reading))
        self.samples, self.change = (), None
        verdict = self._judge(reading)
        asked, whole = self._topic_is_due(step), self._all_is_due(step)
        if self.topic is not None and (asked or step in self.read_at) and verdict.zone != "stop":
            self.change = self.topic.read(self.model)
            reading = dataclasses.replace(reading, readings={**reading.readings, **topic_readings(self.change)})
            verdict = self._judge(reading)
        due = asked or whole or step == self.total_steps or sampling_is_due(step, self.guard, verdict)
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
        """What the sensors read after every step, by their names; what does not apply is left out.

        Drift is read in one part of the rows, when it is due, and judged over the latest reading of each. A part that
        passes a limit by itself is reason to read them all: a model that breaks at once does not wait for the last.
        After a sign of a collapse a part is read after every step.
        """
        self.drift_read = False
        if self.drift is None:
            return {}
        by_step = {s.name: s.read_step(step) for s in SENSORS.values() if s.read_step is not None}
        taken = {name: value for name, value in by_step.items() if value is not None}
        every = 1 if self.verdict.zone == "warning" and not self.guard.idle else self.drift.every
        whole, due = self._all_is_due(step.step), (step.step - 1) % every == 0
        part = (step.step - 1) // every % self.drift.parts
        now = self.drift.read_part(part, self.logits, self.model.device) if due and not whole else {}
        if now and self.drift.parts > 1:
            alone = StepReading(step=step.step, loss=0.0, grad_norm=0.0, readings=self._drift_of(now))
            if judge([alone], self.guard, self.total_steps, begins_random=self.begins_random).violations:
                whole = True
        if whole:
            now = self.drift.read_all(self.logits, self.model.device)
        self.drift_read = len(now) == len(self.first)
        self.latest |= now
        return self._drift_of(self.latest) | taken

    def _topic_is_due(self, step: int) -> bool:
        return self.topic is not None and (step == self.total_steps or step % self.topic.every == 0)

    def _all_is_due(self, step: int) -> bool:
        """Whether rows that are read in parts are all read after this step, which is one at which the topic is read."""
        if self.drift is None or self.drift.parts == 1:
            return False
        every = self.topic.every if self.topic is not None else 1
        return step == self.total_steps or step % (every * math.ceil(self.drift.every_all / every)) == 0

    def _drift_of(self, rows: Mapping[int, RowMetrics]) -> dict[str, float]:
        """Drift over some rows, against the untouched model's on the same."""
        return read_drift(combined(self.first[i] for i in rows), combined(rows.values()))

    @property
    def healthy_sample(self) -> bool:
        """Whether greedy samples were due and no limit was passed: a state worth keeping."""
        return self.sampled and not self.verdict.violations

    @property
    def fully_read(self) -> bool:
        """Whether nothing that is read at intervals is left to be read of this state."""
        return (self.topic is None or self.change is not None) and (self.drift is None or self.drift_read)

    def unread_violations(self) -> tuple[str, ...]:
        """Limits that the model as it is now passes in what is read at intervals: of a state that was kept before."""
        if self.drift is None:
            return ()
        readings = self._drift_of(self.drift.read_all(self.logits, self.model.device))
        if self.topic is not None:
            readings |= topic_readings(self.topic.read(self.model))
        alone = StepReading(step=0, loss=0.0, grad_norm=0.0, readings=readings)
        return judge([alone], self.guard, self.total_steps, begins_random=self.begins_random).violations

    def record(self) -> dict[str, Any]:
        """The last reading and verdict, for ``steps.jsonl``; what was not read is None."""
        readings, sensors = self.history[-1].readings, SENSORS.values()
        record: dict[str, Any] = {"zone": self.verdict.zone}
        record |= {"limits_used": limit_shares(self.history, self.guard, self.total_steps)}
        record |= {s.name: readings.get(s.name) for s in sensors if s.read_step or s.read_drift or s.read_topic}
        sample = {s.name: readings[s.name] for s in sensors if s.read_samples and s.name in readings}
        record |= {"sample": sample or None}
        record |= {"violations": list(self.verdict.violations), "warnings": list(self.verdict.warnings)}
        record |= {"warned_by": list(self.verdict.warned_by)}
        if self.change is not None:
            record["topic"] = {m: self.change.after.of(m) for m in self.change.after.names("")}
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
            "latest": list(self.latest.items()),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state`` gave."""
        self.history = [StepReading(**values) for values in state["history"]]
        self.latest = {
            row: {name: (total, count) for name, (total, count) in read.items()} for row, read in state["latest"]
        }
        verdict = state["verdict"]
        texts = (tuple(verdict[name]) for name in ("violations", "warnings", "warned_by"))
        self.verdict = GuardVerdict(verdict["zone"], *texts)
