"""What a model says of the pairs: one scoring pass, with hidden states and a few samples of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from conviction.audit.row import AuditRow, Measured
from conviction.core.protocols import AnswerScore, AnswerStates, LanguageModel, Progress, Query, WeightModel

__all__ = ["measure"]

SAMPLES = 16
SAMPLE_TOKENS = 24
"""The first tokens of an answer: enough for a level (a standard error of about 0.1 nats), little beside the pass."""
SEED = 0


def measure(
    rows: Sequence[AuditRow], model: LanguageModel, progress: Callable[[str], Progress] | None = None
) -> tuple[list[AuditRow], list[AnswerScore]]:
    """The rows with what the model says of them, and its own samples on some of their prompts, scored alike.

    Rows that do not fit in the model's context stay unmeasured.
    """
    queries = [Query(row.pair.messages, (row.chosen, row.rejected)) for row in rows if row.pair is not None]
    fitting = [i for i, query in enumerate(queries) if model.fits(query)]
    samples = _samples(model, [queries[i] for i in fitting], progress)
    asked = [queries[i] for i in fitting] + samples
    told = progress("scoring") if progress else None
    measured = list(rows)
    if isinstance(model, WeightModel):
        states = model.answer_states(asked, progress=told)
        for i, pair in zip(fitting, states, strict=False):
            measured[i] = dataclasses.replace(rows[i], measured=_with_states(*pair))
        return measured, [s.score for group in states[len(fitting) :] for s in group]
    scores = model.logprobs(asked, progress=told, fresh=True)
    for i, (chosen, rejected) in zip(fitting, scores, strict=False):
        measured[i] = dataclasses.replace(rows[i], measured=Measured(chosen, rejected))
    return measured, [s for group in scores[len(fitting) :] for s in group]


def _with_states(chosen: AnswerStates, rejected: AnswerStates) -> Measured:
    ours, theirs = chosen.state_sum.astype(np.float64), rejected.state_sum.astype(np.float64)
    return Measured(chosen.score, rejected.score, inner=float(ours @ theirs), square=float(ours @ ours))


def _samples(model: LanguageModel, queries: Sequence[Query], progress: Callable[[str], Progress] | None) -> list[Query]:
    """The model's own answers to prompts from all over the data, as queries; empty ones are left out."""
    prompts = list(dict.fromkeys(query.messages for query in queries))
    chosen = [prompts[i * len(prompts) // SAMPLES] for i in range(SAMPLES)] if len(prompts) > SAMPLES else prompts
    told = progress("the model's own samples") if progress else None
    written = model.generate(chosen, max_new_tokens=SAMPLE_TOKENS, seed=SEED, progress=told) if chosen else []
    own = [Query(prompt, (g.text,)) for prompt, g in zip(chosen, written, strict=True) if g.text.strip()]
    return [query for query in own if model.fits(query)]
