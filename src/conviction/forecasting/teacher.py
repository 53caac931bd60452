"""The forecast of a distillation: what its teacher itself does with the questions, measured before anything is trained.

A student moves towards its teacher, so that the teacher's gaps say where the run leads. How much of that way it goes in
so many steps is not simulated: on `obesity` a student of 36 steps had 86 % of its teacher's movement on the pairs that
it was taught, and less on others.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from scipy.stats import norm

from conviction.core.options import build
from conviction.core.protocols import Progress
from conviction.core.wording import percent
from conviction.forecasting.expectations import LEAST_ERROR, RELATIVE_ERROR, expected_flips, question_of
from conviction.forecasting.records import Flips, PairForecast, SweepPoint, Verdict
from conviction.forecasting.rows import HeldOutPair
from conviction.forecasting.verdict import ENOUGH, LEAST_PAIRS
from conviction.models.prompted import with_system
from conviction.training.batches import encode_pairs, step_order
from conviction.training.loop import TrainingTask
from conviction.training.objectives import Divergence
from conviction.training.policy import make_policy
from conviction.training.teacher import TeacherPrompts, TeacherScores, compute_teacher

__all__ = ["UNKNOWN", "TeacherForecast", "forecast_teacher"]

ROLES = ("target", "paraphrase")  # of facts the untouched model is the teacher: they are to stay
UNKNOWN = (
    "how much of its teacher's movement the student learns, and what else it loses: the run is not simulated, and a "
    "stop by the guard is not predicted"
)


@dataclass(frozen=True)
class TeacherForecast:
    """What is expected of the questions, were the student its teacher; settings: the same with other strengths."""

    pair_forecasts: tuple[PairForecast, ...]
    flips: Flips | None
    verdict: Verdict
    settings: tuple[SweepPoint, ...]


def forecast_teacher(
    intervention: Any,
    task: TrainingTask,
    held_out: Sequence[HeldOutPair],
    sweep: Sequence[Mapping[str, Any]],
    progress: Progress | None = None,
) -> TeacherForecast:
    """Put the questions to the teacher of ``task``, and to one of every strength of ``sweep``.

    All of them read the same context.
    """
    asked = [pair for pair in held_out if pair.role in ROLES]
    read: dict[float, tuple[PairForecast, ...]] = {}

    def expected(strength: float) -> tuple[PairForecast, ...]:
        if strength not in read:
            read[strength] = _expected(task, asked, strength, progress)
        return read[strength]

    assert task.teacher is not None  # noqa: S101  as its caller has seen
    taught = sum(prompt != e.prompt for prompt, e in zip(task.teacher.prompts, task.examples, strict=True))
    planned = expected(intervention.strength)
    settings = []
    for options in sweep:
        began, other = time.perf_counter(), build(intervention, options)
        pairs = expected(other.strength)
        settings.append(
            SweepPoint(
                options=dict(options),
                steps=len(step_order(taught, other.training)),
                flips=expected_flips(pairs),
                margin=None,
                test_gap_nats=_movement(pairs),
                predicted_stop=None,
                guard_utilisation=None,
                extrapolation=None,
                seconds=time.perf_counter() - began,
            )
        )
    flips = expected_flips(planned)
    return TeacherForecast(planned, flips, _judged(task, planned, flips), tuple(settings))


def _expected(
    task: TrainingTask, asked: Sequence[HeldOutPair], strength: float, progress: Progress | None
) -> tuple[PairForecast, ...]:
    model, objective = task.model, task.objective
    assert isinstance(objective, Divergence)  # noqa: S101  as a task with a teacher has
    limit = model.encoder.context_length
    with_context = [replace(one.pair, messages=with_system(objective.context, one.pair.messages)) for one in asked]
    examples = zip(asked, encode_pairs(model.encoder, [one.pair for one in asked]),
                   encode_pairs(model.encoder, with_context), strict=True)  # fmt: skip
    fitting = [(one, plain, read) for one, plain, read in examples if limit is None or read.longest <= limit]
    if not fitting:
        return ()
    endings = tuple(len(model.encoder.encode_ending(one.pair.messages)) for one, _, _ in fitting)
    plain = [example for _, example, _ in fitting]
    teacher = compute_teacher(
        make_policy(model, task.weights, task.training, packed=task.packed),
        model,
        plain,
        TeacherPrompts(tuple(read.prompt for _, _, read in fitting), endings, strength),
        token_budget=task.training.token_budget or model.engine.token_budget,
        progress=progress,
    )
    return tuple(
        _pair(one, teacher.scores[i], [count - endings[i] for count in plain[i].counts])
        for i, (one, _, _) in enumerate(fitting)
    )


def _pair(one: HeldOutPair, scores: TeacherScores, counts: Sequence[int]) -> PairForecast:
    before, after = (chosen - rejected for chosen, rejected in (scores.untouched, scores.teacher))
    moved = [n * (new - old) for n, new, old in zip(counts, scores.teacher, scores.untouched, strict=True)]
    error = math.hypot(LEAST_ERROR, RELATIVE_ERROR * (after - before))
    return PairForecast(
        id=one.pair.id,
        split="test",
        role=one.role,
        start_nats=before,
        gap_nats=after,
        chosen_nats=moved[0],
        rejected_nats=moved[1],
        p_correct=float(norm.cdf(after / error)),
        question=question_of(one),
    )


def _movement(pairs: Sequence[PairForecast]) -> float | None:
    return math.fsum(pair.gap_nats - pair.start_nats for pair in pairs) / len(pairs) if pairs else None


def _judged(task: TrainingTask, pairs: Sequence[PairForecast], flips: Flips | None) -> Verdict:
    """By the flips alone: a teacher that does not move the questions has nothing to teach."""
    moved = _movement(pairs)
    if flips is None or moved is None or min(len(pairs), len(task.examples)) < LEAST_PAIRS:
        advice = "give a topic, or --test with pairs that are not trained on; eight of each at least"
        return Verdict(kind="none", reasons=("too few questions to judge by",), advice=(advice,))
    seen = f"the teacher itself moves {len(pairs)} questions of the test split by {moved:+.3f} nats per token"
    if not flips.wrong:
        reason = f"the model already finds the wanted answer likelier on all {len(pairs)} test pairs"
        return Verdict(kind="nothing to flip", reasons=(reason, seen), advice=("leave the model as it is",))
    share = f"{flips.text}, if the student learns all of it ({percent(flips.expected / flips.wrong)})"
    if flips.expected >= ENOUGH * flips.wrong:
        return Verdict(kind="trainable", reasons=(seen, share), advice=("keep the guard on",))
    return Verdict(
        kind="not at these settings",
        reasons=(seen, share),
        advice=("a greater `strength`, or a context that moves the model farther: probe with it first",),
    )
