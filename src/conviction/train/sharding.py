"""FSDP: trained weights, their gradients and AdamW's moments, cut over the processes (Zhao et al. 2304.11277).

Asked for as accelerate users do, by ``accelerate launch --use_fsdp``. The
cutting is torch's own ``fully_shard``, since accelerate 1.15 has no FSDP on
CPUs, where it can be tested. Frozen weights stay whole in every process: they
are those of the reference, and there already.
"""

from __future__ import annotations

import os

from accelerate import Accelerator
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from conviction.errors import InputError
from conviction.models.lora import decoder_layers
from conviction.train.policy import Policy, trained

__all__ = ["is_sharded", "shard"]


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether this run was launched under FSDP."""
    wanted = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in {"1", "true", "yes"}
    return wanted and accelerator.num_processes > 1


def shard(policy: Policy, accelerator: Accelerator) -> None:
    """Cut the trained weights of every block; a block's are whole while it computes.

    Raises InputError if weights outside the blocks are trained.
    """
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    blocks = [block for block in decoder_layers(policy.module) if trained(block)]
    inside = {parameter for block in blocks for _, parameter in trained(block)}
    if any(parameter not in inside for _, parameter in trained(policy)):
        depth = policy.module.config.get_text_config().num_hidden_layers
        raise InputError(
            "FSDP cuts blocks only, and weights outside of them are to be trained",
            hint=f"num_layers={depth} trains all blocks and leaves the embeddings; or run without FSDP",
        )
    for block in blocks:
        frozen = {parameter for parameter in block.parameters() if not parameter.requires_grad}
        fully_shard(block, mesh=mesh, ignored_params=frozen, reshard_after_forward=True)
        # Room for the whole weights is made once, and must not be made under inference mode, where samples are written.
        block.unshard()
        block.reshard()
