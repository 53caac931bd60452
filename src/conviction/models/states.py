"""Hidden states: what blocks put out while a text is read."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from conviction.models.engine.packing import Ids
from conviction.models.lora import decoder_layers

if TYPE_CHECKING:
    from transformers import DynamicCache

    from conviction.models.hf import HFModel

Hook = Callable[[Any, Any, Any], Any]


@contextmanager
def hooked(*places: tuple[nn.Module, Hook]) -> Iterator[None]:
    """Forward hooks that are gone afterwards, whatever happens."""
    handles = [module.register_forward_hook(hook) for module, hook in places]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Skip(nn.Module):
    """Stands in for a layer whose output is known."""

    def forward(self, hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        return hidden_states


@contextmanager
def skipped(layers: nn.ModuleList, first: int) -> Iterator[None]:
    """The layers before ``first`` let through what they are given."""
    own = list(layers)[:first]
    try:
        for i in range(first):
            layers[i] = _Skip()
        yield
    finally:
        for i, layer in enumerate(own):
            layers[i] = layer


class Stop(Exception):  # noqa: N818  no error: everything wanted is known
    """Ends a forward pass early."""


def stopping(_module: Any, _inputs: Any, _output: Any) -> None:
    """A hook that ends the forward pass."""
    raise Stop


def states_of(output: Any) -> Tensor:
    """[..., hidden] of what a block returned: some return a tuple that begins with it."""
    result: Tensor = output[0] if isinstance(output, tuple) else output
    return result


def with_states(output: Any, states: Tensor) -> Any:
    """What a block returned, with other states in it."""
    return (states, *output[1:]) if isinstance(output, tuple) else states


def reading_on(module: Any, cache: DynamicCache | None) -> dict[str, Any]:
    """The arguments with which a pass of the module reads this cache and adds to it; None: it keeps none.

    The argument is called ``cache`` from transformers 5.24 on, and ``past_key_values`` before and in models
    that bring their own code.
    """
    name = "cache" if "cache" in inspect.signature(module.forward).parameters else "past_key_values"
    return {name: cache, "use_cache": cache is not None}


def fork(cache: DynamicCache, change: Callable[[Tensor], Tensor] = lambda kept: kept) -> DynamicCache:
    """A cache that a pass may add to without the first one noticing; ``change`` is made to all keys and values."""
    own = copy.copy(cache)
    own.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in own.layers:
        layer.keys, layer.values = change(layer.keys), change(layer.values)
    return own


@torch.inference_mode()
def block_outputs(model: HFModel, ids: Ids, layers: Sequence[int]) -> dict[int, Tensor]:
    """Layer → fp32 [tokens, hidden], what that block puts out for each token of one text."""
    blocks = decoder_layers(model.module)
    results: dict[int, Tensor] = {}

    def keep(layer: int) -> Hook:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            results[layer] = states_of(output)[0].float()

        return hook

    with hooked(*((blocks[layer], keep(layer)) for layer in layers)):
        model.module.base_model(input_ids=torch.tensor([ids], device=model.device), use_cache=False)
    return results
