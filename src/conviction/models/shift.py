"""A vector added to what a block puts out, at every position: the mechanics of steering.

The vector is a buffer of the block, so whatever copies, moves or hashes the
module takes it along; one hook, the same for all, adds it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from conviction.models.states import states_of, with_states

BUFFER = "steering"


def add_steering(block: nn.Module, _inputs: Any, output: Any) -> Any:
    """Forward hook: [..., hidden] plus the block's vector; blocks that return tuples carry the states first."""
    shift: Any = block.get_buffer(BUFFER)
    return with_states(output, states_of(output) + shift)


def shift_block(block: nn.Module, vector: Tensor) -> None:
    """Add ``vector`` [hidden] to a block's output from now on, on top of what is added already."""
    parameter = next(block.parameters())
    vector = vector.to(parameter.device, parameter.dtype)
    if BUFFER in dict(block.named_buffers(recurse=False)):
        vector = block.get_buffer(BUFFER) + vector
    else:
        block.register_forward_hook(add_steering)
    block.register_buffer(BUFFER, vector)


def is_steered(module: nn.Module) -> bool:
    """Whether any block of the module is shifted."""
    return any(name.rpartition(".")[2] == BUFFER for name, _ in module.named_buffers())
