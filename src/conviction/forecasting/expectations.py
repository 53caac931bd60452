"""From a simulated run to what a user wants to know: flips, drifts, and where the guard would stop. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor

from conviction.forecasting.kernel import Kernel, Step, Trajectory
from conviction.forecasting.pilot import PilotReading
from conviction.forecasting.records import (
    SAFE_UTILISATION,
    Flips,
    PairForecast,
    PredictedStop,
    Question,
    StepForecast,
)
from conviction.forecasting.rows import HeldOutPair, Rows
from conviction.training.drift import read_drift
from conviction.training.guard import Guard, judge, limit_shares
from conviction.training.sensors import DriftMetrics, StepReading
from conviction.training.settings import Training
from conviction.training.step import rate_at

__all__ = ["Utilisation", "expected_flips", "guard_on", "pair_forecasts", "step_forecasts"]

# Of an expected movement of the gap per token: relative error, and what is left of it where nothing moves.
# Set on three runs that are not among those of benchmarks/forecast_battery.
RELATIVE_ERROR, LEAST_ERROR = 0.35, 0.03
DRAWS = 2000


@dataclass(frozen=True)
class Utilisation:
    """The guard on a simulated run. share: the largest part of a limit that is reached on the way."""

    predicted_stop: PredictedStop | None
    share: float


def guard_on(
    steps: Sequence[Step], kernel: Kernel, rows: Rows, guard: Guard, pilot: Sequence[PilotReading], training: Training
) -> Utilisation:
    """Judge expected readings by the guard's own rule.

    As far as the pilot came they are the pilot's, by the way covered; beyond it chosen
    answers and neutral text are simulated. What the guard reads on held-out prompts and
    in samples is not.
    """
    guard = dataclasses.replace(guard, mode="default" if guard.idle else guard.mode)
    tokens = float(kernel.counts[rows.neutral].sum())
    history: list[StepReading] = []
    share, way = 0.0, 0.0
    ways, start = [r.way for r in pilot], DriftMetrics(neutral=0.0)
    for step in steps:
        way += rate_at(step.step, len(steps), training)
        readings = read_drift(start, DriftMetrics(neutral=float(step.watched.sum()) / tokens))
        chosen_drop = step.chosen_drop
        if ways and way <= ways[-1]:
            seen = {name: [0.0, *(r.readings[name] for r in pilot)] for name in readings}
            readings = {name: float(np.interp(way, [0.0, *ways], values)) for name, values in seen.items()}
            if chosen_drop is not None:
                chosen_drop = float(np.interp(way, ways, [r.chosen_drop for r in pilot]))
        history.append(
            StepReading(
                step=step.step,
                loss=step.loss,
                grad_norm=step.grad_norm,
                margin=step.margin,
                chosen_drop=chosen_drop,
                readings=readings,
            )
        )
        judged = judge(history, guard, len(steps))
        shares = limit_shares(history, guard, len(steps))
        share = max([share, *shares.values()])
        if judged.zone == "stop":
            close = {name: part for name, part in shares.items() if SAFE_UTILISATION < part < 1}
            reasons = judged.violations or judged.warnings
            return Utilisation(PredictedStop(step=step.step, reasons=reasons, close=close), share)
    return Utilisation(None, share)


def gaps(kernel: Kernel, pairs: Tensor, moved: Tensor | None = None) -> Tensor:
    """[n] gap per token of pairs [n, 2], at the start or after a movement of all rows."""
    sums = kernel.base if moved is None else kernel.base + moved
    means = sums[pairs] / kernel.counts[pairs]
    return means[:, 0] - means[:, 1]


def pair_forecasts(
    kernel: Kernel, rows: Rows, names: Sequence[str], asked: Sequence[HeldOutPair], moved: Tensor
) -> tuple[PairForecast, ...]:
    """Trained pairs (by their names) and questions, one by one, after a movement of all rows."""
    pairs_trained = rows.examples.shape[1] == 2
    trained = [
        (pair, name, "train", "target") for pair, name in zip(rows.examples, names, strict=True) if pairs_trained
    ]
    known = trained + [(pair, q.pair.id, "test", q.role) for pair, q in zip(rows.asked, asked, strict=True)]
    if not known:
        return ()
    pairs = torch.stack([pair for pair, *_ in known])
    before, after = gaps(kernel, pairs), gaps(kernel, pairs, moved)
    error = torch.sqrt(LEAST_ERROR**2 + (RELATIVE_ERROR * (after - before)) ** 2)
    p_correct = norm.cdf((after / error).double().numpy())
    return tuple(
        PairForecast(
            id=name,
            split=split,  # type: ignore[arg-type]
            role=role,
            start_nats=float(before[k]),
            gap_nats=float(after[k]),
            chosen_nats=float(moved[pair[0]]),
            rejected_nats=float(moved[pair[1]]),
            p_correct=float(p_correct[k]),
            question=question_of(asked[k - len(trained)]) if split == "test" else None,
        )
        for k, (pair, name, split, role) in enumerate(known)
    )


def question_of(asked: HeldOutPair) -> Question:
    """What is asked after training."""
    pair = asked.pair
    turns = tuple((m.role, m.content) for m in pair.messages)
    return Question(turns=turns, wanted=pair.chosen, other=pair.rejected)


def expected_flips(result: Sequence[PairForecast], *, seed: int = 0) -> Flips | None:
    """Flips on the test split with their interval: sizes are wrong together, not pair by pair. None without questions.

    Each draw scales all movements by one factor of the relative error, then adds each pair's own rest.
    """
    asked = [o for o in result if o.counts]
    if not asked:
        return None
    wrong = [o for o in asked if o.start_nats < 0]
    if not wrong:
        return Flips(pairs=len(asked), wrong=0, expected=0.0, low=0.0, high=0.0)
    start = np.array([o.start_nats for o in wrong])
    moved = np.array([o.gap_nats - o.start_nats for o in wrong])
    rng = np.random.default_rng(seed)
    factor = 1 + RELATIVE_ERROR * rng.standard_normal((DRAWS, 1))
    own = (LEAST_ERROR + RELATIVE_ERROR / 2 * np.abs(moved)) * rng.standard_normal((DRAWS, len(wrong)))
    counts = (start + factor * moved + own > 0).sum(axis=1)
    low, high = np.quantile(counts, [0.025, 0.975])
    return Flips(
        pairs=len(asked), wrong=len(wrong), expected=sum(o.p_correct for o in wrong), low=float(low), high=float(high)
    )


def step_forecasts(
    kernel: Kernel, rows: Rows, asked: Sequence[HeldOutPair], run: Trajectory
) -> tuple[StepForecast, ...]:
    """The run at the steps that were read."""
    test = torch.tensor([q.role in {"target", "paraphrase"} for q in asked], dtype=torch.bool)
    questions, facts = rows.asked[test], rows.asked[~test]
    tokens = float(kernel.counts[rows.neutral].sum())
    results = []
    for step, moved in run.moved.items():
        at = run.steps[step - 1]
        trained = moved[rows.examples].mean(0)
        pairs = rows.examples.shape[1] == 2
        results.append(
            StepForecast(
                step=step,
                loss=at.loss,
                margin=at.margin,
                train_chosen_nats=float(trained[0]),
                train_rejected_nats=float(trained[1]) if pairs else None,
                test_chosen_nats=_mean(moved[questions[:, 0]]),
                test_rejected_nats=_mean(moved[questions[:, 1]]),
                test_gap_nats=_mean(gaps(kernel, questions, moved)),
                facts_gap_nats=_mean(gaps(kernel, facts, moved)),
                neutral_nats=float(moved[rows.neutral].sum()) / tokens,
            )
        )
    return tuple(results)


def _mean(values: Tensor) -> float | None:
    return float(values.mean()) if len(values) else None
