"""Scores of preference pairs, with how alike the two answers look to the model; from the cache where known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from conviction.core.protocols import AnswerScore, AnswerStates, PairScore, Progress, Query
from conviction.models.engine.packing import Ids
from conviction.models.score_cache import ScoreCache

if TYPE_CHECKING:
    from conviction.models.hf import HFModel

__all__ = ["score_pairs"]

CHUNK = 256
"""Pairs between two writes to the cache, and whose hidden states are held at once."""
_BETWEEN = -1  # no token has this id: what stands around it in a key are two answers

Row = tuple[Ids, Ids]
Pair = tuple[Row, Row]


def score_pairs(model: HFModel, queries: Sequence[Query], progress: Progress | None) -> list[PairScore]:
    """Each query's two answers; what an earlier call finished, this model and these texts, is not computed again."""
    pairs = [_rows(model, query) for query in queries]
    cache = None if model.hooked else ScoreCache(model.scope())
    try:
        keys = [key for pair in pairs for key in (*pair, _joint(pair))]
        known = {} if cache is None else cache.find(keys)
        missing = [i for i, pair in enumerate(pairs) if not all(key in known for key in (*pair, _joint(pair)))]
        for start in range(0, len(missing), CHUNK):
            part = missing[start : start + CHUNK]
            states = model.answer_states(
                [queries[i] for i in part], progress=_beyond(progress, start, len(part), len(missing))
            )
            found: dict[Row, tuple[float, ...]] = {}
            for i, (chosen, rejected) in zip(part, states, strict=True):
                found |= {pairs[i][0]: chosen.score.logprobs, pairs[i][1]: rejected.score.logprobs}
                found[_joint(pairs[i])] = _alike(chosen, rejected)
            if cache is not None:
                cache.keep(found)
            known |= found
    finally:
        if cache is not None:
            cache.close()
    return [
        PairScore(AnswerScore(a[1], known[a]), AnswerScore(b[1], known[b]), *known[_joint((a, b))]) for a, b in pairs
    ]


def _rows(model: HFModel, query: Query) -> Pair:
    prompt = model.encoder.encode_prompt(query.messages)
    chosen, rejected = (model.encoder.encode_answer(answer, query.messages) for answer in query.answers)
    return (prompt, chosen), (prompt, rejected)


def _joint(pair: Pair) -> Row:
    """The key of what is known of both answers together."""
    (prompt, chosen), (_, rejected) = pair
    return prompt, (*chosen, _BETWEEN, *rejected)


def _alike(chosen: AnswerStates, rejected: AnswerStates) -> tuple[float, float]:
    ours, theirs = chosen.state_sum.astype(np.float64), rejected.state_sum.astype(np.float64)
    return float(ours @ theirs), float(ours @ ours)


def _beyond(progress: Progress | None, start: int, size: int, total: int) -> Progress | None:
    """Progress of one chunk as that of all."""
    if progress is None:
        return None
    return lambda done, of: progress(start + round(size * done / max(1, of)), total)
