"""Separate scoring: each (prompt, answer) in a row of its own, through ``model.forward``.

The plain way, and the oracle that the packed engine is checked against at
load. Architectures for which packing is wrong (recurrent and hybrid state,
chunked attention, ALiBi) are scored here for good.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from conviction.models.packing import Ids

__all__ = ["score_rows"]


@torch.inference_mode()
def score_rows(
    model: Any, rows: Sequence[tuple[Ids, Ids]], *, batch_size: int = 1, sums: list[Any] | None = None
) -> list[list[float]]:
    """Per-token log-probs (nats, fp32 softmax) of each row's answer, in order.

    Rows of one batch are padded on the right, where a causal model cannot see.
    sums: takes each row's sum [hidden] of last hidden states that predict its answer.
    """
    device = next(model.parameters()).device
    scored: list[list[float]] = []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        # The last token of an answer is only ever predicted, never read.
        inputs = [(prompt + answer)[:-1] for prompt, answer in batch]
        width = max(map(len, inputs))
        ids = torch.tensor([row + (0,) * (width - len(row)) for row in inputs], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in inputs], device=device)
        # One row needs no mask; recurrent layers may treat a given one as a request for padding support.
        out = model(
            input_ids=ids,
            attention_mask=mask if len(batch) > 1 else None,
            use_cache=False,
            output_hidden_states=sums is not None,
        )
        for i, (prompt, answer) in enumerate(batch):
            predicting = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
            if sums is not None:
                sums.append(out.hidden_states[-1][i, predicting].float().sum(0).cpu().numpy())
            steps = out.logits[i, predicting].float()
            picked = steps.gather(1, torch.tensor(answer, device=device)[:, None])[:, 0]
            scored.append((picked - torch.logsumexp(steps, dim=-1)).tolist())
    return scored
