"""Separate scoring: each (prompt, answer) in a row of its own, through ``model.forward``.

The plain way, and the oracle that the packed engine is checked against at
load. Architectures for which packing is wrong (recurrent and hybrid state,
chunked attention, ALiBi) are scored here for good.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from conviction.models.engine.packing import Ids


@torch.inference_mode()
def score_unpacked(model: Any, rows: Sequence[tuple[Ids, Ids]], *, sums: list[Any] | None = None) -> list[list[float]]:
    """Per-token log-probs (nats, fp32 softmax) of each row's answer, in order.

    One row at a time: padding can disturb recurrent layers, and some take a mask for a request to support it.
    sums: takes each row's sum [hidden] of last hidden states that predict its answer.
    """
    device = next(model.parameters()).device
    scored: list[list[float]] = []
    for prompt, answer in rows:
        # The last token of an answer is only ever predicted, never read.
        ids = torch.tensor([(prompt + answer)[:-1]], device=device)
        out = model(input_ids=ids, use_cache=False, output_hidden_states=sums is not None)
        predicting = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
        if sums is not None:
            sums.append(out.hidden_states[-1][0, predicting].float().sum(0).cpu().numpy())
        steps = out.logits[0, predicting].float()
        picked = steps.gather(1, torch.tensor(answer, device=device)[:, None])[:, 0]
        scored.append((picked - torch.logsumexp(steps, dim=-1)).tolist())
    return scored
