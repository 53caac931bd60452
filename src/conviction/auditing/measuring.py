"""What a model says of the pairs: one scoring pass, with hidden states and a few samples of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from conviction.auditing.row import AuditRow
from conviction.core.context import RunContext
from conviction.core.protocols import AnswerScore, HiddenStateModel, LanguageModel, PairScore, Query
from conviction.errors import InputError

SAMPLES = 8
SAMPLE_TOKENS = 24
"""Enough for a level (a standard error of 0.2 nats), and one batch, little beside the pass."""
SEED = 0


def measure(
    rows: Sequence[AuditRow],
    model: LanguageModel,
    *,
    states: bool = True,
    samples: bool = True,
    ctx: RunContext,
) -> tuple[list[AuditRow], list[AnswerScore]]:
    """The rows with what the model says of them, and its own samples on some of their prompts, scored alike.

    states   with hidden states, from a model that shows them
    samples  False: none are written

    Rows that the model's context or template does not hold stay unmeasured.
    """
    queries = [Query(row.pair.messages, (row.chosen, row.rejected)) for row in rows if row.pair is not None]
    fitting = [i for i, query in enumerate(queries) if _fits(model, query)]
    asked = [queries[i] for i in fitting]
    own = model.logprobs(_samples(model, asked, ctx)) if samples else []
    progress = ctx.progress("scoring")
    if states and isinstance(model, HiddenStateModel):
        results = model.pair_scores(asked, progress=progress)
    else:
        results = [PairScore(chosen, rejected) for chosen, rejected in model.logprobs(asked, progress=progress)]
    measured = list(rows)
    for i, message in zip(fitting, results, strict=True):
        measured[i] = dataclasses.replace(rows[i], measured=message)
    return measured, [score for scores in own for score in scores]


def _fits(model: LanguageModel, query: Query, room: int = 0) -> bool:
    try:
        return model.fits(query, room=room)
    except InputError:  # the chat template refuses it
        return False


def _samples(model: LanguageModel, queries: Sequence[Query], ctx: RunContext) -> list[Query]:
    """The model's own answers to prompts of the data, as queries; empty ones are left out.

    From the shorter half of the prompts, evenly: padding to a long one would cost more than all the rest.
    """
    prompts = list(dict.fromkeys(query.messages for query in queries))
    prompts.sort(key=lambda messages: sum(len(m.content) for m in messages))
    short = prompts[: max(SAMPLES, len(prompts) // 2)]
    chosen = [short[i * len(short) // SAMPLES] for i in range(SAMPLES)] if len(short) > SAMPLES else short
    chosen = [messages for messages in chosen if _fits(model, Query(messages, ()), SAMPLE_TOKENS)]
    progress = ctx.progress("the model's own samples")
    written = model.generate(chosen, max_new_tokens=SAMPLE_TOKENS, seed=SEED, progress=progress) if chosen else []
    own = [Query(prompt, (g.text,)) for prompt, g in zip(chosen, written, strict=True) if g.text.strip()]
    return [query for query in own if _fits(model, query)]
