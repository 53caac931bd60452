"""The model in training: a copy that shares every frozen tensor with the model it comes from.

The untouched model stays usable as the reference while its copy moves, and no
frozen weight is held twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from conviction.models.devices import to_dtype
from conviction.models.engine.attention import Prefix
from conviction.models.engine.logprobs import answer_states, find_head, predictions, token_logprobs
from conviction.models.engine.packing import Ids, Pack
from conviction.models.hf import HFModel
from conviction.models.lora import add_lora, decoder_layers, first_trained_layer, merged_copy, shared_copy
from conviction.models.states import skipped
from conviction.training.batches import TokenizedExample
from conviction.training.divergence import TeacherTargets, divergence
from conviction.training.recompute import use_memory_efficient_layers
from conviction.training.settings import Training, Weights


class Policy(nn.Module):
    """A causal LM as a function from a pack to the log-probs of its answers' tokens.

    module   transformers' model, with adapter or trainable weights
    packed   False: the architecture does not allow packing, each answer gets a row of its own
    first    index of the first layer that is trained
    mixed    compute in bf16 around trained fp32 weights
    """

    def __init__(self, module: Any, *, packed: bool, first: int = 0, mixed: bool = False) -> None:
        super().__init__()
        self.module = module
        self.packed = packed
        self.first = first
        self.mixed = mixed

    def autocast(self) -> torch.autocast:
        """bf16 arithmetic around fp32 weights, where that is how this policy computes."""
        return torch.autocast(next(self.module.parameters()).device.type, torch.bfloat16, enabled=self.mixed)

    @contextmanager
    def dropout(self) -> Iterator[None]:
        """LoRA dropout, for gradients only: readings, samples and the reference are without it."""
        layers = [child for name, child in self.module.named_modules() if "lora_dropout" in name]
        for layer in layers:
            layer.train()
        try:
            yield
        finally:
            for layer in layers:
                layer.eval()

    def forward(self, pack: Pack, entering: Tensor | None = None, teacher: TeacherTargets | None = None) -> Tensor:
        """[M] log-probs, nats, fp32, in the order of ``predictions(pack)``; ``entering`` skips the frozen layers.

        With a ``teacher``: [M] divergences from it, KL(teacher || policy), nats.
        """
        with self.autocast():
            if not self.packed and teacher is None:
                return self._rows(pack)
            head = find_head(self.module, exact=False)
            hidden, targets = self.states(pack, entering)
            if teacher is not None:
                values = divergence(hidden, teacher.padded(len(hidden)), head)
            else:
                values = token_logprobs(hidden, targets, head)
            return values[: len(predictions(pack)[0])]

    def states(self, pack: Pack, entering: Tensor | None = None, prefix: Prefix | None = None) -> tuple[Tensor, Tensor]:
        """Last hidden states [M, hidden] that predict a pack's answer tokens, and those tokens [M]; padding may follow.

        prefix  what all of the pack's trees come after, where that was computed before
        """
        body, head = self.module.base_model, find_head(self.module, exact=False)
        if not self.packed:
            return self._states_of_rows(pack)
        if entering is None:
            return answer_states(body, head, pack, prefix or Prefix())
        with skipped(decoder_layers(self.module), self.first):
            return answer_states(body, head, pack, Prefix(), entering)

    def _states_of_rows(self, pack: Pack) -> tuple[Tensor, Tensor]:
        """Separate rows through the model's own body."""
        nodes, tokens, where = predictions(pack)
        device = next(self.module.parameters()).device
        states = torch.zeros(len(nodes), self.module.config.get_text_config().hidden_size, device=device)
        for (prompt, answer), index in where.items():
            ids = torch.tensor([(prompt + answer)[:-1]], device=device)
            read = self.module.base_model(input_ids=ids, use_cache=False).last_hidden_state[0, len(prompt) - 1 :]
            # one after another: beginnings may be shared, and their gradient must not count twice
            states = states.to(read.dtype).index_put((index.to(device),), read)
        return states, torch.tensor(tokens, device=device)

    def _rows(self, pack: Pack) -> Tensor:
        """Separate rows through the model's own forward: exact for any architecture."""
        nodes, _, where = predictions(pack)
        device = next(self.module.parameters()).device
        values = torch.zeros(len(nodes), device=device)
        for (prompt, answer), index in where.items():
            ids = torch.tensor([(prompt + answer)[:-1]], device=device)
            logits = self.module(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 :].float()
            picked = logits.gather(1, torch.tensor(answer, device=device)[:, None])[:, 0]
            values = values.index_put((index.to(device),), picked - torch.logsumexp(logits, dim=-1))
        return values


def make_policy(model: HFModel, weights: Weights, training: Training, *, packed: bool) -> Policy:
    """A policy whose layers keep little for the backward pass (``recompute``)."""
    policy = plain_policy(model, weights, training, packed=packed)
    if policy.packed:
        use_memory_efficient_layers(policy.module)
    return policy


def plain_policy(model: HFModel, weights: Weights, training: Training, *, packed: bool) -> Policy:
    """A trainable copy of a model: with a new adapter, or with its own weights (the last layers') made trainable.

    packed  whether the rows that it will see may be packed (``EngineModel.packs``)

    Trained full weights are fp32, however the model was loaded: an update below
    bf16's resolution would be lost. Dropout is off but for the adapter's own.
    """
    dtype = {"auto": model.dtype, "fp32": torch.float32, "bf16": torch.bfloat16}[training.precision]
    module = _copy(model.module, dtype if weights.tune == "lora" or dtype == torch.float32 else None)
    first = first_trained_layer(module, weights.num_layers)
    if weights.tune == "lora":
        add_lora(
            module,
            rank=weights.rank,
            scale=weights.multiplier,
            dropout=weights.dropout,
            target_modules=weights.target_modules,
            num_layers=weights.num_layers,
            seed=training.seed,
        )
    else:
        _open(module, first, whole=weights.num_layers is None)
    module.eval()
    mixed = weights.tune == "full" and dtype == torch.bfloat16
    return Policy(module, packed=packed, first=first, mixed=mixed)


def trainable_parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Names and tensors of what moves."""
    return [(name, p) for name, p in module.named_parameters() if p.requires_grad]


def recompute_activations(policy: Policy) -> None:
    """From now on keep only what enters each block, and compute the rest again in the backward pass."""
    for layer in decoder_layers(policy.module):
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def sum_answers(values: Tensor, pack: Pack, members: Sequence[TokenizedExample]) -> Tensor:
    """[members, answers] sums over each answer's tokens of a pack's values; 0 for an answer that is not there."""
    _, _, where = predictions(pack)
    rows: list[tuple[Ids, Ids]] = [(m.prompt, answer) for m in members for answer in m.answers]
    index = torch.cat([where[row] for row in rows]).to(values.device)
    lengths = torch.tensor([len(where[row]) for row in rows], device=values.device)
    owner = torch.repeat_interleave(torch.arange(len(rows), device=values.device), lengths)
    sums = torch.zeros(len(rows), device=values.device).index_add(0, owner, values[index])
    return pad_sequence(list(torch.split(sums, [len(m.answers) for m in members])), batch_first=True)


def _copy(module: Any, dtype: torch.dtype | None) -> Any:
    """A frozen copy that shares what it can; an adapter that it carries is merged."""
    copy = merged_copy(module) if hasattr(module, "peft_config") else shared_copy(module)
    if dtype is not None:
        to_dtype(copy, dtype)
    return copy


def _open(module: Any, first: int, *, whole: bool) -> None:
    """Give the trained part fp32 tensors of its own."""
    parts = [module] if whole else list(decoder_layers(module))[first:]
    for part in parts:
        for parameter in part.parameters():
            parameter.data = parameter.data.to(torch.float32, copy=True)
            parameter.requires_grad_(True)
