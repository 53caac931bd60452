"""Before the first step: the policy, not yet trained, must give what the model gives.

A copy that reads weights otherwise than the model's own ``forward`` does (codes of a
quantised layer taken for weights, a window or a scaling that packing does not know) trains
against a reference that is wrong in the same way, so that neither margin nor guard shows it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from conviction.errors import ModelError
from conviction.models.engine.logprobs import predictions
from conviction.models.engine.packing import pack_whole
from conviction.models.engine.protocol import Row
from conviction.models.engine.selfcheck import SECOND_LOOK, Agreement, compare
from conviction.models.hf import HFModel
from conviction.training.batches import TokenizedExample
from conviction.training.policy import Policy

COMPARED = 3  # examples: the longest and two others


@torch.no_grad()
def check_untrained(policy: Policy, model: HFModel, examples: Sequence[TokenizedExample], token_budget: int) -> str:
    """Compare the policy with the model's own ``forward`` on the longest example and two others.

    Where these do not agree, ``SECOND_LOOK`` more decide: what rounding does is not known from three. A packed policy
    that differs computes rows one by one from now on; what is returned says so, and is empty otherwise. Raises
    ModelError, with both numbers, if it still differs.
    """
    agreement, worst = _compare_twice(policy, model, examples, token_budget)
    if agreement.accepted:
        return ""
    if policy.packed:
        policy.packed = False
        apart = agreement.max_difference
        agreement, worst = _compare_twice(policy, model, examples, token_budget)
        if agreement.accepted:
            return f"rows are trained one by one: packed, they differ by up to {apart:.2g} nats a token"
    name, ours, theirs = worst
    raise ModelError(
        f"before training, {model.id} and its copy do not agree on '{name}': mean log-prob {theirs:.3f} by the "
        f"model's own forward, {ours:.3f} by the copy that would be trained",
        hint="its weights cannot be trained as they are stored: load unquantised weights, or use --dtype fp32",
    )


def _compare_twice(
    policy: Policy, model: HFModel, examples: Sequence[TokenizedExample], token_budget: int
) -> tuple[Agreement, tuple[str, float, float]]:
    """``_compare`` on few examples; on more, where these do not agree."""
    by_length = sorted(examples, key=lambda e: (-e.longest, e.id))
    middle = by_length[len(by_length) // 2 :]
    result = _compare(policy, model, [by_length[0], *middle[: COMPARED - 1]], token_budget)
    if result[0].accepted:
        return result
    half = SECOND_LOOK // 2
    more = {e.id: e for e in (*by_length[: 1 + half], *middle[: COMPARED - 1 + half])}
    return _compare(policy, model, list(more.values()), token_budget)


def _compare(
    policy: Policy, model: HFModel, examples: Sequence[TokenizedExample], token_budget: int
) -> tuple[Agreement, tuple[str, float, float]]:
    """How the two compare, and the example that is farthest apart: its id, the policy's and the model's mean."""
    scored: dict[Row, list[float]] = {}
    for pack, _ in pack_whole([(e.prompt, e.answers) for e in examples], token_budget=token_budget):
        values = policy(pack).float().cpu()
        _, _, where = predictions(pack)
        scored |= {row: values[index].tolist() for row, index in where.items()}
    separate = {row: values for batch in model.engine.score(list(scored)) for row, values in batch.items()}
    same_dtype = next(policy.module.parameters()).dtype == model.dtype and not policy.mixed
    agreement = compare(model.engine, separate, scored, same_dtype=same_dtype)
    means = {
        (e.prompt, answer): (e.id, _mean(scored[e.prompt, answer]), _mean(separate[e.prompt, answer]))
        for e in examples
        for answer in e.answers
    }
    return agreement, max(means.values(), key=lambda m: abs(m[1] - m[2]))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
