"""The divergence from a teacher over the whole vocabulary, without a table of the vocabulary's size.

Distillation (Hinton et al. 1503.02531) lets a student match a teacher's distribution over next tokens; of a teacher
that is the same model with a text before the question it is context distillation (Askell et al. 2112.00861, section 2;
Snell et al. 2209.15189).

Where logits are linear in the last hidden state h, softmax is an exponential family with the log-sum-exp A(h) as its
log-partition, and the divergence is the Bregman divergence of A (Banerjee et al., JMLR 6, 2005, theorem 4):

    KL(teacher || student) = A(h) - A(t) - ∇A(t)·(h - t)        with the teacher's state t, the student's h

exactly, over all tokens of the vocabulary. Of the teacher only ∇A(t), as wide as the hidden state, and one number are
kept for a position, and the derivative is ∇A(h) - ∇A(t). A teacher whose logits are extrapolated, base + α·(context -
base), has the state that is extrapolated so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div, pad

from conviction.models.engine.logprobs import Head, logsumexp_with_slope

__all__ = ["TeacherTargets", "divergence", "is_linear", "teacher_targets"]


@dataclass(frozen=True, eq=False)
class TeacherTargets:
    """What a teacher predicts at M positions.

    vectors  [M, hidden] fp32: ∇A(t), where ``levels`` are given, else the teacher's last hidden states t
    levels   [M] fp32, nats: ∇A(t)·t - A(t); None: the head is trained, or no linear map
    head     the teacher's, which does not move
    """

    vectors: Tensor
    levels: Tensor | None
    head: Head

    def padded(self, rows: int) -> TeacherTargets:
        """As many positions as there are rows of hidden states; the further ones mean nothing."""
        more = rows - len(self.vectors)
        levels = None if self.levels is None else pad(self.levels, (0, more))
        return TeacherTargets(pad(self.vectors, (0, 0, 0, more)), levels, self.head)


def is_linear(head: Head) -> bool:
    """Whether logits are a linear map of hidden states that does not move."""
    trained = head.weight.requires_grad or (head.bias is not None and head.bias.requires_grad)
    return head.softcap is None and not trained


@torch.no_grad()
def teacher_targets(states: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    """Vectors and levels (``TeacherTargets``) from the teacher's last hidden states [M, hidden]; the head is linear."""
    total, slope = logsumexp_with_slope(states, head)
    return slope, (slope * states.float()).sum(-1) - total


def divergence(hidden: Tensor, targets: TeacherTargets, head: Head) -> Tensor:
    """KL(teacher || student) [M], nats, fp32, over the whole vocabulary; hidden [M, hidden]: the student's states.

    In half precision a token's value carries the rounding of its logits, a few hundredths of a nat, so that one near
    0 may come out below it.
    """
    if torch.is_autocast_enabled(hidden.device.type):  # as in ``token_logprobs``
        with torch.autocast(hidden.device.type, enabled=False):
            return divergence(hidden, targets, head)
    if targets.levels is not None:
        values: Tensor = _Divergence.apply(hidden, targets.vectors, targets.levels, head)  # type: ignore[no-untyped-call]
        return values
    with torch.no_grad():
        teacher = targets.head.logits(targets.vectors.to(targets.head.weight.dtype), slice(None)).log_softmax(-1)
    student = head.logits(hidden, slice(None)).log_softmax(-1)
    return kl_div(student, teacher, reduction="none", log_target=True).sum(-1)


class _Divergence(torch.autograd.Function):
    """The Bregman form, with its derivative from the same walk over the vocabulary."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, vectors: Tensor, levels: Tensor, head: Head) -> Tensor:
        total, slope = logsumexp_with_slope(hidden, head)
        ctx.save_for_backward((slope - vectors).to(hidden.dtype))
        return total + levels - (hidden.float() * vectors).sum(-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (direction,) = ctx.saved_tensors
        return direction * grads[0][:, None].to(direction.dtype), None, None, None
