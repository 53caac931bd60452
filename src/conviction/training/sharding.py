"""FSDP: trained weights, their gradients and AdamW's moments, cut over the processes (Zhao et al. 2304.11277).

Asked for as accelerate users do, by ``accelerate launch --use_fsdp``. The
cutting is torch's own ``fully_shard``, since accelerate 1.15 has no FSDP on
CPUs, where it can be tested. Frozen weights stay whole in every process: they
are those of the reference, and there already.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from conviction.errors import InputError
from conviction.models.lora import decoder_layers
from conviction.training.policy import Policy, trainable_parameters


def wants_sharding() -> bool:
    """Whether this run was launched under FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in {"1", "true", "yes"}


def blocks_to_shard(policy: Policy) -> list[nn.Module]:
    """The blocks that are trained. Raises InputError if weights outside of blocks are trained, too."""
    blocks: list[nn.Module] = [block for block in decoder_layers(policy.module) if trainable_parameters(block)]
    inside = {parameter for block in blocks for _, parameter in trainable_parameters(block)}
    if any(parameter not in inside for _, parameter in trainable_parameters(policy)):
        depth = policy.module.config.get_text_config().num_hidden_layers
        raise InputError(
            "FSDP cuts blocks only, and weights outside of them are to be trained",
            hint=f"num_layers={depth} trains all blocks and leaves the embeddings; or run without FSDP",
        )
    return blocks


def shard(blocks: Sequence[nn.Module], accelerator: Accelerator) -> None:
    """Cut the trained weights of every block; a block's are whole while it computes."""
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for block in blocks:
        frozen = {parameter for parameter in block.parameters() if not parameter.requires_grad}
        fully_shard(block, mesh=mesh, ignored_params=frozen, reshard_after_forward=True)
        # Room for the whole weights is made once, and must not be made under inference mode, where samples are written.
        whole = cast("FSDPModule", block)
        whole.unshard()
        whole.reshard()


@contextmanager
def gathered(policy: Policy) -> Iterator[None]:
    """Blocks stay whole until the end: what runs meanwhile needs no other process, and may differ between them."""
    blocks = [block for block in policy.modules() if isinstance(block, FSDPModule)]
    for block in blocks:
        block.set_reshard_after_forward(False)
        block.unshard()
    try:
        yield
    finally:
        for block in blocks:
            block.set_reshard_after_forward(True)
            block.reshard()
