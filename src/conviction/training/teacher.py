"""The teacher of a distillation: the untouched model, which reads another prompt than its student.

What it predicts never changes, and is computed once, before the first step: a context that all prompts begin with is
read once for all of them. Kept is a vector of the hidden size for every token of an answer
(``losses.divergence``): 7 MB for 108 answers of 30 tokens and a width of 576, where a table of log-probs over 49,152
tokens would take 637.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from conviction.core.protocols import Progress
from conviction.errors import InputError
from conviction.models.engine.attention import Prefix
from conviction.models.engine.logprobs import Head, checked_head, compute_prefix, predictions, token_logprobs
from conviction.models.engine.packing import Ids, Pack, pack_whole, plan
from conviction.models.engine.protocol import Row
from conviction.models.hf import HFModel
from conviction.training.batches import MicroBatch, TokenizedExample
from conviction.training.losses.divergence import TeacherTargets, is_linear, teacher_targets
from conviction.training.memory import available
from conviction.training.policy import Policy

MEMORY_SHARE = 0.5  # of the memory that is free, which a teacher may take


@dataclass(frozen=True)
class TeacherPrompts:
    """What the teacher reads before the answers of each example; the example's own prompt: nothing else, an anchor.

    strength  α: the teacher's logits are base + α·(context - base), with the base's after the example's own prompt
    """

    prompts: tuple[Ids, ...]
    strength: float


@dataclass(frozen=True)
class TeacherScores:
    """Log-probs of one example's answers, summed over tokens, nats: one number an answer.

    untouched  after its own prompt; context: after the teacher's; teacher: under the extrapolated distribution
    """

    untouched: tuple[float, ...]
    context: tuple[float, ...]
    teacher: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Teacher:
    """What the teacher predicts, for all answer tokens of all examples one after another.

    starts  where the tokens of each answer of each example begin
    scores  of the examples that have a prompt of the teacher's own, by index
    """

    targets: TeacherTargets
    starts: tuple[tuple[int, ...], ...]
    scores: dict[int, TeacherScores]

    def of(self, batch: MicroBatch, members: Sequence[TokenizedExample], device: torch.device) -> TeacherTargets:
        """In the order of ``predictions(batch.pack)``."""
        nodes, _, where = predictions(batch.pack)
        source = torch.zeros(len(nodes), dtype=torch.long)
        for i, member in zip(batch.members, members, strict=True):
            for start, answer in zip(self.starts[i], member.answers, strict=True):
                source[where[member.prompt, answer]] = start + torch.arange(len(answer))
        vectors, levels = self.targets.vectors[source].to(device), self.targets.levels
        return TeacherTargets(vectors, None if levels is None else levels[source].to(device), self.targets.head)


@torch.no_grad()
def compute_teacher(
    policy: Policy,
    model: HFModel,
    examples: Sequence[TokenizedExample],
    given: TeacherPrompts,
    *,
    token_budget: int,
    progress: Progress | None = None,
) -> Teacher:
    """Run the policy, not yet trained, over all examples with and without the teacher's prompts.

    Raises InputError where what is kept would not fit into memory, ModelError for a head that is not known here.
    """
    head, width = checked_head(policy.module, exact=False), model.engine.hidden_size
    starts, total = _starts(examples)
    size = 4 * total * width
    if size > MEMORY_SHARE * (room := available(torch.device("cpu"))):
        raise InputError(
            f"what the teacher predicts for {total:,} answer tokens takes {size >> 20} MB, {room >> 20} MB are free",
            hint="give fewer pairs, or set max_length lower",
        )
    taught = [i for i, (e, prompt) in enumerate(zip(examples, given.prompts, strict=True)) if prompt != e.prompt]
    own = _spans([(i, e.prompt) for i, e in enumerate(examples)], examples, starts)
    other = _spans([(i, given.prompts[i]) for i in taught], examples, starts)
    states, untouched, context = torch.empty(total, width), torch.zeros(total), torch.zeros(total)
    for done, (row, hidden, logp) in enumerate(_read(policy, head, list(own), token_budget), start=1):
        for span in own[row]:
            states[span], untouched[span] = hidden, logp
        if progress is not None:
            progress(done, len(own) + len(other))
    for done, (row, hidden, logp) in enumerate(_read(policy, head, list(other), token_budget), start=1):
        for span in other[row]:
            states[span] += given.strength * (hidden - states[span])
            context[span] = logp
        if progress is not None:
            progress(len(own) + done, len(own) + len(other))
    tokens = torch.tensor([token for e in examples for answer in e.answers for token in answer])
    targets, teacher = _targets(states, tokens, head, model, token_budget)
    scores = {
        i: TeacherScores(*(_sums(values, starts[i], examples[i]) for values in (untouched, context, teacher)))
        for i in taught
    }
    return Teacher(targets, starts, scores)


def _targets(states: Tensor, tokens: Tensor, head: Head, model: HFModel, rows: int) -> tuple[TeacherTargets, Tensor]:
    """Targets, in the place of the states, and the log-probs of the tokens, so many rows at a time."""
    linear, levels, logps = is_linear(head), torch.empty(len(states)), torch.empty(len(states))
    device, dtype = head.weight.device, head.weight.dtype
    for start in range(0, len(states), rows):
        part = slice(start, start + rows)
        read = states[part].to(device, dtype)
        logps[part] = token_logprobs(read, tokens[part].to(device), head).cpu()
        targets = teacher_targets(read, head, linear=linear)
        if targets.levels is not None:
            states[part], levels[part] = targets.vectors.cpu(), targets.levels.cpu()
    still = head if linear else checked_head(model.module, exact=False)  # a trained head moves; the model's does not
    return TeacherTargets(states, levels if linear else None, still), logps


def _starts(examples: Sequence[TokenizedExample]) -> tuple[tuple[tuple[int, ...], ...], int]:
    starts, total = [], 0
    for example in examples:
        own = []
        for count in example.counts:
            own.append(total)
            total += count
        starts.append(tuple(own))
    return tuple(starts), total


def _spans(
    prompts: Sequence[tuple[int, Ids]], examples: Sequence[TokenizedExample], starts: Sequence[Sequence[int]]
) -> dict[Row, list[slice]]:
    """Rows to be read, and where what is read of each belongs."""
    spans: dict[Row, list[slice]] = {}
    for i, prompt in prompts:
        for start, answer in zip(starts[i], examples[i].answers, strict=True):
            spans.setdefault((prompt, answer), []).append(slice(start, start + len(answer)))
    return spans


def _read(policy: Policy, head: Head, rows: Sequence[Row], token_budget: int) -> Iterator[tuple[Row, Tensor, Tensor]]:
    """Each row's last hidden states [tokens, hidden] and log-probs [tokens], on the CPU, fp32."""
    for prefix, pack in _packs(policy, head, rows, token_budget):
        with policy.autocast():
            hidden, tokens = policy.states(pack, prefix=prefix)
        logps = token_logprobs(hidden, tokens, head).cpu()
        states = hidden.float().cpu()
        for row, index in predictions(pack)[2].items():
            yield row, states[index], logps[index]


def _packs(policy: Policy, head: Head, rows: Sequence[Row], token_budget: int) -> Iterator[tuple[Prefix, Pack]]:
    """What many rows begin with is computed once, where the policy packs."""
    requests = [(prompt, [answer]) for prompt, answer in rows]
    if not policy.packed:
        yield from ((Prefix(), pack) for pack, _ in pack_whole(requests, token_budget=token_budget))
        return
    for block in plan(requests, token_budget=token_budget, hidden_size=head.weight.shape[1]):
        with policy.autocast():
            prefix = compute_prefix(policy.module.base_model, block.prefix, head.weight.device)
        yield from ((prefix, pack) for pack in block.packs)


def _sums(values: Tensor, starts: Sequence[int], example: TokenizedExample) -> tuple[float, ...]:
    return tuple(
        float(values[start : start + count].sum()) for start, count in zip(starts, example.counts, strict=True)
    )
