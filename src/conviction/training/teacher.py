"""The teacher of a distillation: the untouched model, which reads another prompt than its student.

What it predicts never changes, and is computed once, before the first step: a context that all prompts begin with is
read once for all of them. Kept is a vector of the hidden size for every token of an answer
(``training.divergence``): 7 MB for 108 answers of 30 tokens and a width of 576, where a table of log-probs over 49,152
tokens would take 637.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
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
from conviction.training.divergence import TeacherTargets, is_linear, teacher_targets
from conviction.training.memory import available
from conviction.training.policy import Policy

MEMORY_SHARE = 0.5  # of the memory that is free, which a teacher may take


@dataclass(frozen=True)
class TeacherPrompts:
    """What the teacher reads before the answers of each example; the example's own prompt: nothing else, an anchor.

    endings   of each example, how many tokens end the turn of an answer: there the teacher reads nothing else, either.
              After a long context a model goes on where it would have ended, and a student that learns this loops
    strength  α: the teacher's logits are base + α·(context - base), with the base's after the example's own prompt
    """

    prompts: tuple[Ids, ...]
    endings: tuple[int, ...]
    strength: float


@dataclass(frozen=True)
class TeacherScores:
    """Log-probs of one example's answers without the turn's end, per token, nats: one number an answer.

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
    extrapolated = given.strength != 1
    size = 4 * total * width * (2 if extrapolated else 1)
    if size > MEMORY_SHARE * (room := available(torch.device("cpu"))):
        raise InputError(
            f"what the teacher predicts for {total:,} answer tokens takes {size >> 20} MB, {room >> 20} MB are free",
            hint="give fewer pairs, or set max_length lower",
        )
    taught = [i for i, (e, prompt) in enumerate(zip(examples, given.prompts, strict=True)) if prompt != e.prompt]
    own = _spans([(i, e.prompt, 0) for i, e in enumerate(examples)], examples, starts)
    other = _spans([(i, given.prompts[i], given.endings[i]) for i in taught], examples, starts)
    tokens = torch.tensor([token for e in examples for answer in e.answers for token in answer])
    asked = [k for spans in other.values() for span in spans for k in range(span.start, span.stop)]
    states = torch.empty(total, width)
    rows, done = len(own) + len(other), itertools.count(1)

    def fill(where: Tensor, spans: Mapping[Row, Sequence[slice]]) -> None:
        for row, hidden in _read(policy, head, list(spans), token_budget):
            for span in spans[row]:
                where[span] = hidden
            if progress is not None:
                progress(next(done), rows)

    fill(states, own)
    untouched = _logprobs(states, tokens, asked, head, token_budget)
    after = states.clone() if extrapolated else states
    fill(after, other)
    context = teacher = _logprobs(after, tokens, asked, head, token_budget)
    if extrapolated:
        states.lerp_(after, given.strength)
        teacher = _logprobs(states, tokens, asked, head, token_budget)
    scores = {
        i: TeacherScores(*(_means(v, starts[i], examples[i], given.endings[i]) for v in (untouched, context, teacher)))
        for i in taught
    }
    return Teacher(_targets(states, head, model, token_budget), starts, scores)


def _targets(states: Tensor, head: Head, model: HFModel, rows: int) -> TeacherTargets:
    """Targets, in the place of the states, so many rows at a time."""
    if not is_linear(head):  # it is trained, or caps its logits: the model's own does not move
        return TeacherTargets(states, None, checked_head(model.module, exact=False))
    levels = torch.empty(len(states))
    for start in range(0, len(states), rows):
        part = slice(start, start + rows)
        vectors, levels[part] = teacher_targets(states[part].to(head.weight.device, head.weight.dtype), head)
        states[part] = vectors.cpu()
    return TeacherTargets(states, levels, head)


def _logprobs(states: Tensor, tokens: Tensor, asked: Sequence[int], head: Head, rows: int) -> Tensor:
    """[N] log-probs of the tokens at the positions that are asked for; 0 elsewhere."""
    values = torch.zeros(len(states))
    device, dtype = head.weight.device, head.weight.dtype
    for start in range(0, len(asked), rows):
        part = list(asked[start : start + rows])
        values[part] = token_logprobs(states[part].to(device, dtype), tokens[part].to(device), head).cpu()
    return values


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
    prompts: Sequence[tuple[int, Ids, int]], examples: Sequence[TokenizedExample], starts: Sequence[Sequence[int]]
) -> dict[Row, list[slice]]:
    """Rows to be read, and where what is read of each belongs.

    prompts  which example, what to read before its answers, and how many of their last tokens to leave out
    """
    spans: dict[Row, list[slice]] = {}
    for i, prompt, ending in prompts:
        for start, answer in zip(starts[i], examples[i].answers, strict=True):
            count = len(answer) - ending
            spans.setdefault((prompt, answer[:count]), []).append(slice(start, start + count))
    return spans


def _read(policy: Policy, head: Head, rows: Sequence[Row], token_budget: int) -> Iterator[tuple[Row, Tensor]]:
    """Each row's last hidden states [tokens, hidden], on the CPU, fp32."""
    for prefix, pack in _packs(policy, head, rows, token_budget):
        with policy.autocast():
            states = policy.states(pack, prefix=prefix)[0].float().cpu()
        yield from ((row, states[index]) for row, index in predictions(pack)[2].items())


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


def _means(values: Tensor, starts: Sequence[int], example: TokenizedExample, ending: int) -> tuple[float, ...]:
    return tuple(
        float(values[start : start + count - ending].mean())
        for start, count in zip(starts, example.counts, strict=True)
    )
