"""Scores of preference pairs, with how alike the two answers look to the model; from the cache where known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from conviction.core.protocols import AnswerScore, AnswerStates, PairScore, Progress, Query
from conviction.models.engine.protocol import Row, Scores
from conviction.models.score_cache import BETWEEN, get_or_compute

if TYPE_CHECKING:
    from conviction.models.language_model import EngineModel

CHUNK = 256
"""Pairs between two writes to the cache, and whose hidden states are held at once."""

Pair = tuple[Row, Row]


def score_pairs(model: EngineModel, queries: Sequence[Query], progress: Progress | None) -> list[PairScore]:
    """Each query's two answers; what an earlier call finished, this model and these texts, is not computed again."""
    pairs = [_rows(model, query) for query in queries]

    def compute(missing: list[Row]) -> Iterator[Scores]:
        wanted = set(missing)
        left = [i for i, pair in enumerate(pairs) if not wanted.isdisjoint(_keys(pair))]
        for start in range(0, len(left), CHUNK):
            part = left[start : start + CHUNK]
            states = model.answer_states(
                [queries[i] for i in part], progress=_beyond(progress, start, len(part), len(left))
            )
            yield {
                key: values
                for i, (chosen, rejected) in zip(part, states, strict=True)
                for key, values in zip(
                    _keys(pairs[i]),
                    (chosen.score.logprobs, rejected.score.logprobs, _alike(chosen, rejected)),
                    strict=True,
                )
            }

    known = get_or_compute(model.cache_scope(), [key for pair in pairs for key in _keys(pair)], compute)
    return [
        PairScore(AnswerScore(a[1], known[a]), AnswerScore(b[1], known[b]), *known[_joint((a, b))]) for a, b in pairs
    ]


def _keys(pair: Pair) -> tuple[Row, Row, Row]:
    return (*pair, _joint(pair))


def _rows(model: EngineModel, query: Query) -> Pair:
    prompt, (chosen, rejected) = model.encoder.encode(query.messages, query.answers)
    return (prompt, chosen), (prompt, rejected)


def _joint(pair: Pair) -> Row:
    """The key of what is known of both answers together."""
    (prompt, chosen), (_, rejected) = pair
    return prompt, (*chosen, BETWEEN, *rejected)


def _alike(chosen: AnswerStates, rejected: AnswerStates) -> tuple[float, float]:
    ours, theirs = chosen.state_sum.astype(np.float64), rejected.state_sum.astype(np.float64)
    return float(ours @ theirs), float(ours @ ours)


def _beyond(progress: Progress | None, start: int, size: int, total: int) -> Progress | None:
    """Progress of one chunk as that of all."""
    if progress is None:
        return None
    return lambda done, of: progress(start + round(size * done / max(1, of)), total)
