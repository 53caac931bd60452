"""What a model says of the pairs: one scoring pass, with hidden states and a few samples of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from conviction.audit.row import AuditRow, Measured
from conviction.core.protocols import AnswerScore, AnswerStates, LanguageModel, Progress, Query, WeightModel
from conviction.errors import InputError

__all__ = ["measure"]

SAMPLES = 8
SAMPLE_TOKENS = 24
"""Enough for a level (a standard error of 0.2 nats), and one batch, little beside the pass."""
SEED = 0
CHUNK = 2048
"""Pairs whose hidden states are held at once."""


def measure(
    rows: Sequence[AuditRow],
    model: LanguageModel,
    *,
    states: bool = True,
    samples: bool = True,
    progress: Callable[[str], Progress] | None = None,
) -> tuple[list[AuditRow], list[AnswerScore]]:
    """The rows with what the model says of them, and its own samples on some of their prompts, scored alike.

    states   with hidden states, from a model that shows them
    samples  False: none are written

    Rows that the model's context or template does not hold stay unmeasured.
    """
    queries = [Query(row.pair.messages, (row.chosen, row.rejected)) for row in rows if row.pair is not None]
    fitting = [i for i, query in enumerate(queries) if _fits(model, query)]
    own = _samples(model, [queries[i] for i in fitting], progress) if samples else []
    asked = [queries[i] for i in fitting] + own
    told = progress("scoring") if progress else None
    found: list[Measured | AnswerScore] = []
    for start in range(0, len(asked), CHUNK):
        part = asked[start : start + CHUNK]
        here = _beyond(told, start, len(asked)) if told else None
        if states and isinstance(model, WeightModel):
            found += [_with_states(*group) for group in model.answer_states(part, progress=here)]
        else:
            found += [_without_states(*group) for group in model.logprobs(part, progress=here)]
    measured = list(rows)
    for i, said in zip(fitting, found, strict=False):
        if isinstance(said, Measured):
            measured[i] = dataclasses.replace(rows[i], measured=said)
    return measured, [said for said in found[len(fitting) :] if isinstance(said, AnswerScore)]


def _beyond(told: Progress, start: int, total: int) -> Progress:
    """Progress of one chunk as that of all queries."""
    return lambda done, of: told(start + round(min(CHUNK, total - start) * done / max(1, of)), total)


def _fits(model: LanguageModel, query: Query, room: int = 0) -> bool:
    try:
        return model.fits(query, room=room)
    except InputError:  # the chat template refuses it
        return False


def _without_states(chosen: AnswerScore, rejected: AnswerScore | None = None) -> Measured | AnswerScore:
    return chosen if rejected is None else Measured(chosen, rejected)


def _with_states(chosen: AnswerStates, rejected: AnswerStates | None = None) -> Measured | AnswerScore:
    if rejected is None:
        return chosen.score
    ours, theirs = chosen.state_sum.astype(np.float64), rejected.state_sum.astype(np.float64)
    return Measured(chosen.score, rejected.score, inner=float(ours @ theirs), square=float(ours @ ours))


def _samples(model: LanguageModel, queries: Sequence[Query], progress: Callable[[str], Progress] | None) -> list[Query]:
    """The model's own answers to prompts of the data, as queries; empty ones are left out.

    From the shorter half of the prompts, evenly: padding to a long one would cost more than all the rest.
    """
    prompts = list(dict.fromkeys(query.messages for query in queries if _fits(model, query, SAMPLE_TOKENS)))
    prompts.sort(key=lambda messages: sum(len(m.content) for m in messages))
    short = prompts[: max(SAMPLES, len(prompts) // 2)]
    chosen = [short[i * len(short) // SAMPLES] for i in range(SAMPLES)] if len(short) > SAMPLES else short
    told = progress("the model's own samples") if progress else None
    written = model.generate(chosen, max_new_tokens=SAMPLE_TOKENS, seed=SEED, progress=told) if chosen else []
    own = [Query(prompt, (g.text,)) for prompt, g in zip(chosen, written, strict=True) if g.text.strip()]
    return [query for query in own if _fits(model, query)]
