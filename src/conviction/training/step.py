"""One optimiser step: packs forward and backward, gradients clipped, weights moved."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from conviction.errors import ModelError, out_of_memory
from conviction.models.engine.packing import pack_whole
from conviction.models.hf import HFModel
from conviction.training.batches import MicroBatch, TokenizedExample, answer_counts, make_microbatches
from conviction.training.monitor import whole
from conviction.training.objectives import Objective, Preference
from conviction.training.policy import Policy, recompute_activations, sum_answers, trainable_parameters
from conviction.training.reference import Prepared
from conviction.training.settings import Training
from conviction.training.teacher import Teacher


@dataclass(frozen=True)
class StepResult:
    """What one step gave. rows: per example its id, loss and measures; applied: whether the weights moved."""

    loss: float
    grad_norm: float
    rows: tuple[dict[str, Any], ...]
    tokens: int
    applied: bool

    def mean(self, name: str) -> float | None:
        """Mean of a measure over the step's examples; None if the objective has no such measure."""
        values = [row[name] for row in self.rows if name in row]
        return math.fsum(values) / len(values) if values else None


@dataclass
class Stepper:
    """What a step needs. ``token_budget`` falls, and ``checkpointing`` begins, when memory runs out."""

    accelerator: Accelerator
    model: HFModel
    policy: Policy
    wrapped: nn.Module
    optimizer: Any
    examples: Sequence[TokenizedExample]
    prepared: Prepared
    objective: Objective
    training: Training
    token_budget: int
    checkpointing: bool
    log: Callable[[str], None]
    teacher: Teacher | None = None

    def run(self, step: int, indices: Sequence[int], rate: float) -> StepResult:
        """Take one step on the given examples; smaller packs are tried where memory runs out."""
        while True:
            # Dropout is a function of seed, step and process: a resumed run need not know what was drawn before.
            torch.manual_seed(hash((self.training.seed, step, self.accelerator.process_index)))
            try:
                return self._attempt(indices, rate)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error) or self.accelerator.num_processes > 1:
                    raise
                self.optimizer.zero_grad()
                self._shrink(indices, error)

    def _attempt(self, indices: Sequence[int], rate: float) -> StepResult:
        accelerator = self.accelerator
        total = self.objective.total(torch.tensor(answer_counts([self.examples[i] for i in indices])))
        batches = make_microbatches(
            self.examples,
            indices,
            token_budget=self.token_budget,
            process=accelerator.process_index,
            processes=accelerator.num_processes,
        )
        kl = self._kl(indices) if isinstance(self.objective, Preference) and self.objective.needs_kl else None
        rows: list[dict[str, Any]] = []
        for k, batch in enumerate(batches):
            # DDP sums gradients over the processes once, with the last pack; FSDP with each: it holds none whole.
            once = k + 1 == len(batches) or self.wrapped is self.policy
            waits = nullcontext() if once else accelerator.no_sync(self.wrapped)
            with waits, self.policy.dropout():
                losses, measures = self._losses(batch, kl)
                # DDP and FSDP take the mean over processes, a step the mean over all of its examples
                (losses.sum() * (batch.weight * accelerator.num_processes / total)).backward()
            if batch.weight:
                values = {"loss": losses.detach().double().tolist(), **measures}
                rows += [
                    {"id": self.examples[i].id, **{name: v[j] for name, v in values.items()}}
                    for j, i in enumerate(batch.members)
                ]
        norm = whole(
            accelerator.clip_grad_norm_([p for _, p in trainable_parameters(self.policy)], self.training.max_grad_norm)
        )
        gathered = gather_object(rows)
        loss, grad_norm = math.fsum(row["loss"] for row in gathered) / total, float(norm)
        applied = math.isfinite(loss) and math.isfinite(grad_norm)
        if applied:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
        self.optimizer.zero_grad()
        tokens = sum(len(self.examples[i].prompt) + sum(self.examples[i].counts) for i in indices)
        order = {self.examples[i].id: k for k, i in enumerate(indices)}
        return StepResult(loss, grad_norm, tuple(sorted(gathered, key=lambda r: order[r["id"]])), tokens, applied)

    def _losses(self, batch: MicroBatch, kl: Tensor | None) -> tuple[Tensor, dict[str, list[float]]]:
        members = [self.examples[i] for i in batch.members]
        device = self.accelerator.device
        activations = self.prepared.activations
        entering = None if activations is None else activations.entering(batch).to(device)
        teacher = None if self.teacher is None else self.teacher.of(batch, members, device)
        values = self.wrapped(batch.pack, entering, teacher)
        sums = sum_answers(values, batch.pack, members)
        counts = torch.tensor(answer_counts(members), device=device, dtype=torch.float32)
        reference = torch.zeros_like(sums)
        if self.prepared.reference:
            reference = torch.tensor([self.prepared.reference[i] for i in batch.members], device=device)
        weights = torch.tensor([m.weight for m in members], device=device)
        losses = weights * self.objective.losses(sums, counts, reference, kl)
        return losses, self.objective.measures(sums, counts, reference)

    @torch.no_grad()
    def _kl(self, indices: Sequence[int]) -> Tensor:
        """KTO's z₀: mean log-ratio of answers to prompts that they do not belong to (2402.01306, Eq. 7), at least 0."""
        if len(indices) < 2:  # an epoch's last step may hold one pair, which belongs to its own prompt
            return torch.zeros((), device=self.accelerator.device)
        shifted = [*indices[1:], *indices[:1]]
        limit = max(self.examples[i].longest for i in indices)  # what is known to fit
        requests = []
        for i, j in zip(indices, shifted, strict=True):
            prompt, room = self.examples[i].prompt, limit - len(self.examples[i].prompt)
            if prompt != self.examples[j].prompt:
                requests.append((prompt, tuple(answer[:room] for answer in self.examples[j].answers)))
        if not requests:
            return torch.zeros((), device=self.accelerator.device)
        untouched = Policy(self.model.module, packed=self.policy.packed)
        ratios = []
        for pack, members in pack_whole(requests, token_budget=self.token_budget):
            asked = [TokenizedExample("", *requests[m]) for m in members]
            now, before = (sum_answers(p(pack), pack, asked) for p in (self.wrapped, untouched))
            ratios.append((now - before).flatten())
        return torch.cat(ratios).mean().clamp(min=0)

    def _shrink(self, indices: Sequence[int], error: BaseException) -> None:
        """Halve the largest pack; when it is one example already, recompute activations; then give up."""
        batches = make_microbatches(self.examples, indices, token_budget=self.token_budget)
        largest = max(len(b.pack.tokens) for b in batches)
        if any(len(b.members) > 1 for b in batches):
            self.token_budget = max(1, min(largest, self.token_budget) // 2)
            self.log(
                f"out of memory with {largest} tokens in a pass: going on with {self.token_budget}; "
                "the examples in a step stay the same"
            )
        elif not self.checkpointing:
            self.checkpointing = True
            recompute_activations(self.policy)
            self.log(f"out of memory with one example of {largest} tokens: activations are now recomputed")
        else:
            raise ModelError(
                f"out of memory with one example of {largest} tokens, activations recomputed",
                hint="set max_length lower, train fewer layers (num_layers), or a smaller rank",
            ) from error


def rate_at(step: int, total: int, training: Training) -> float:
    """Learning rate of ``step`` (from 1): linear warm-up, then constant, or down to zero after the last step."""
    rising = math.ceil(training.warmup * total)
    if step <= rising:
        return training.learning_rate * step / (rising + 1)
    done = (step - 1 - rising) / max(1, total - rising)
    share = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[training.schedule]
    return training.learning_rate * share
