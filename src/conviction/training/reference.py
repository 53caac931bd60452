"""What is computed once per data set: the untouched model's log-probs, and activations entering the trained layers.

Both come from one pass over the examples. Log-probs are kept on disk under the
content of weights, text and arithmetic; with ``num_layers`` below the model's
depth, what enters the first trained layer never changes, and is kept for all
steps and epochs: in memory where little, in a mapped file within a budget.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor

from conviction.core.protocols import Progress
from conviction.core.storage import cache_dir, storage_errors
from conviction.models.engine.logprobs import predictions
from conviction.models.engine.packing import pack_whole
from conviction.models.engine.protocol import Row, Scores
from conviction.models.lora import decoder_layers
from conviction.models.score_cache import get_or_compute
from conviction.models.states import Stop
from conviction.training.batches import MicroBatch, TokenizedExample, make_microbatches
from conviction.training.policy import Policy

MEMORY_SHARE = 0.1  # of the memory that is free: activations beyond it go to a file
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.3, torch.float16: 0.3}  # nats per answer token, at worst


@dataclass(frozen=True)
class Activations:
    """Hidden states [tokens, hidden] entering the first trained layer, for all examples one after another."""

    states: Tensor
    starts: tuple[int, ...]

    def entering(self, batch: MicroBatch) -> Tensor:
        """[T, hidden] for the pack of a batch."""
        spans = [self.states[self.starts[i] : self.starts[i + 1]] for i in batch.members]
        return torch.cat(spans)


@dataclass(frozen=True)
class Prepared:
    """reference: per example the summed log-prob of each answer, nats; note: what the user should know."""

    reference: tuple[tuple[float, ...], ...] = ()
    activations: Activations | None = None
    note: str = ""


def precompute_reference(
    policy: Policy,
    examples: Sequence[TokenizedExample],
    *,
    order: Sequence[Sequence[int]],
    scope: Sequence[str] | None,
    cache_mb: int,
    token_budget: int,
    progress: Progress | None = None,
) -> Prepared:
    """Run the policy, not yet trained, over all examples.

    order     indices of each step's examples
    scope     what the log-probs depend on besides the ids; None: no log-probs are wanted
    cache_mb  disk for activations; 0: none are kept

    In half precision an answer rounds otherwise in every pack, by 0.4 nats a whole answer (Gemma-3-270m in bf16), so
    that a margin was there before anything was trained. There each example is read in the very pack of its first step.
    """
    activations, note = _allocate(policy, examples, cache_mb)
    rounds = scope is not None and (policy.mixed or next(policy.module.parameters()).dtype != torch.float32)
    groups = _first_visits(order, len(examples)) if rounds else [tuple(range(len(examples)))]

    def compute(missing: list[Row]) -> Iterator[Scores]:
        unread = set(missing)
        batches = []
        for group in groups:
            due = [i for i in group if activations is not None or not unread.isdisjoint(_rows([examples[i]]))]
            batches += make_microbatches(examples, group if rounds else due, token_budget=token_budget) if due else []
        for done, batch in enumerate(batches):
            rows = _rows([examples[i] for i in batch.members])
            values = _pass(policy, batch, activations, read=not unread.isdisjoint(rows))
            if values is not None:
                _, _, where = predictions(batch.pack)
                yield {row: values[where[row]].tolist() for row in rows if row in unread}
                unread.difference_update(rows)
            if progress is not None:
                progress(done + 1, len(batches))

    layout = (_digest(groups, token_budget),) if rounds else ()
    # A pass for activations is due even where all log-probs are known.
    known = get_or_compute(
        None if scope is None else ("reference-4", *scope, *layout), [] if scope is None else _rows(examples), compute
    )
    reference = tuple(tuple(sum(known[e.prompt, a]) for a in e.answers) for e in examples) if scope is not None else ()
    if activations is not None and not _agrees(policy, examples, activations, token_budget):
        return Prepared(
            reference, None, "this architecture cannot start from stored activations: computed anew each step"
        )
    return Prepared(reference, activations, note)


def _first_visits(order: Sequence[Sequence[int]], count: int) -> list[tuple[int, ...]]:
    """The steps, each as it is, until every example was seen; those that no step sees are a last group."""
    unseen, groups = dict.fromkeys(range(count)), list[tuple[int, ...]]()
    for step in order:
        if not unseen.keys().isdisjoint(step):
            groups.append(tuple(step))
            for i in step:
                unseen.pop(i, None)
    return [*groups, tuple(unseen)] if unseen else groups


def _digest(groups: Sequence[Sequence[int]], token_budget: int) -> str:
    return hashlib.sha256(json.dumps([list(map(list, groups)), token_budget]).encode()).hexdigest()


def _rows(examples: Sequence[TokenizedExample]) -> list[Row]:
    return [(e.prompt, answer) for e in examples for answer in e.answers]


def _allocate(policy: Policy, examples: Sequence[TokenizedExample], cache_mb: int) -> tuple[Activations | None, str]:
    """Room for the activations: in memory, in a mapped file, or none."""
    if policy.first == 0 or cache_mb == 0 or not policy.packed:
        return None, ""
    weight = policy.module.get_input_embeddings().weight
    lengths = [len(pack_whole([(e.prompt, e.answers)], token_budget=1)[0][0].tokens) for e in examples]
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    count = starts[-1] * policy.module.config.get_text_config().hidden_size
    size = count * weight.element_size()
    if size <= MEMORY_SHARE * psutil.virtual_memory().available:
        flat = torch.empty(count, dtype=weight.dtype)
    elif size <= cache_mb * 2**20:
        folder = cache_dir() / "activations"
        with storage_errors(f"making room for {size >> 20} MB of activations in {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
            # Unlinked at once: the mapping lives as long as the tensor, and leaves nothing behind.
            with tempfile.NamedTemporaryFile(dir=folder) as file:
                file.truncate(size)
                if hasattr(os, "posix_fallocate"):  # a sparse file would fail only when it is filled
                    os.posix_fallocate(file.fileno(), 0, size)
                flat = torch.from_file(file.name, shared=True, size=count, dtype=weight.dtype)
    else:
        return None, f"activations would take {size >> 20} MB (activation_cache_mb {cache_mb}): computed anew each step"
    return Activations(flat.view(starts[-1], -1), tuple(starts)), ""


@torch.no_grad()
def _pass(policy: Policy, batch: MicroBatch, activations: Activations | None, *, read: bool) -> Tensor | None:
    """Log-probs of a batch if wanted, with its activations stored on the way."""
    if activations is None:
        return policy(batch.pack).float().cpu() if read else None

    def stop(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        _store(activations, batch, args[0] if args else kwargs["hidden_states"])
        if not read:
            raise Stop

    handle = decoder_layers(policy.module)[policy.first].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        return policy(batch.pack).float().cpu()  # type: ignore[no-any-return]
    except Stop:
        return None
    finally:
        handle.remove()


def _store(activations: Activations, batch: MicroBatch, hidden: Tensor) -> None:
    flat, offset = hidden[0].to("cpu", activations.states.dtype), 0
    for i in batch.members:
        start, end = activations.starts[i], activations.starts[i + 1]
        activations.states[start:end] = flat[offset : offset + end - start]
        offset += end - start


@torch.no_grad()
def _agrees(policy: Policy, examples: Sequence[TokenizedExample], activations: Activations, token_budget: int) -> bool:
    """Whether starting from stored activations gives the log-probs of a whole pass."""
    shortest = min(range(len(examples)), key=lambda i: examples[i].longest)
    request = (examples[shortest].prompt, examples[shortest].answers)
    pack, _ = pack_whole([request], token_budget=token_budget)[0]
    device = next(policy.module.parameters()).device
    try:
        split = policy(pack, activations.entering(MicroBatch(pack, (shortest,))).to(device))
    except Exception:  # a foreign architecture may object in any way
        return False
    difference = (split - policy(pack)).abs().max()
    return bool(difference <= TOLERANCE.get(activations.states.dtype, 1e-3))
