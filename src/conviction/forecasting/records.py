"""What a forecast says: types that are written to ``forecast.json`` before training, and scored after it.

Log-probs in nats; ``*_nats`` without "per token" are summed over an answer's
tokens. Gaps are log-prob per token of the wanted answer less that of the other.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from conviction.core import frames
from conviction.core.wording import WRONG_BY_SUMS, WRONG_PER_TOKEN, percent

__all__ = [
    "FlipCost",
    "Flips",
    "Forecast",
    "ForecastScore",
    "PairForecast",
    "PilotReport",
    "PredictedStop",
    "Question",
    "Signal",
    "StepForecast",
    "SweepPoint",
    "Verdict",
]

SCHEMA = 3
SAFE_UTILISATION = 0.5  # simulated drifts fall short of real ones by up to a factor of two
MAX_EXTRAPOLATION = 4.0
WRONG = WRONG_PER_TOKEN  # a test pair whose other answer is likelier per token, as ``probe`` counts
Kind = Literal[
    "trainable",
    "only with these settings",
    "style only",
    "not at these settings",
    "not within the guard's limits",
    "nothing to flip",
    "none",
]


def wrong_by(per_token: bool) -> str:
    """How a pair counts as wrong, in words: a loss compares sums, or means per token."""
    return WRONG if per_token else WRONG_BY_SUMS


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FlipCost(_Part):
    """The arithmetic of flips over the training pairs, under one loss.

    wrong      pairs that the untouched model ranks the wrong way round, in the loss's own terms
    per_token  whether c and the margin are per token
    over       wrong pairs that need a margin over ``cap``
    faded      wrong pairs at whose flip less than 1 % of the loss's gradient is left
    quantiles  of ``c`` (nats), ``margin``, ``loss`` and ``left`` (share of the gradient) over the wrong pairs
    beta_for_half, beta_for_most   largest β at which half, and 95 %, of them flip under the cap;
               None: β does not matter for it
    """

    loss: str
    beta: float
    pairs: int
    wrong: int
    per_token: bool
    cap: float
    over: int
    faded: int
    quantiles: dict[str, dict[str, float]] = {}
    beta_for_half: float | None = None
    beta_for_most: float | None = None
    summary: str


class Signal(_Part):
    """Whether the pairs pull in one direction.

    mean_cosine  of the gradients of two pairs' differences
    snr          length of the mean gradient over the noise of that mean; 1: nothing but noise
    p_value      of so long a mean, if each pair's direction were a coin toss (sign-flip test)
    """

    pairs: int
    mean_cosine: float
    snr: float
    p_value: float


class PredictedStop(_Part):
    """A limit of the guard that a run is expected to pass.

    close  sensor → part of its limit reached at that step, of others over ``SAFE_UTILISATION`` that may be first
    """

    step: int
    reasons: tuple[str, ...]
    close: dict[str, float] = {}

    @property
    def cause(self) -> str:
        """Why, in one line."""
        names = [f"{name} ({percent(share)} of its limit)" for name, share in self.close.items()]
        may = f"; simulated drifts fall short, so that {' or '.join(names)} may be what stops it" if names else ""
        return "; ".join(self.reasons) + may


class PilotReport(_Part):
    """The real steps before the forecast, whose weights are not kept.

    learning_rate  constant over the steps
    moved          real and simulated mean movement of the trained pairs' difference, nats
    correlation    of the two, pair by pair
    trouble        where the guard stopped the pilot
    """

    steps: int
    learning_rate: float
    moved: tuple[float, float] | None = None
    correlation: float | None = None
    predicted_stop: PredictedStop | None = None


class StepForecast(_Part):
    """The simulated run after a step: means, nats. train_*, test_*: movement since the start; None: no such rows."""

    step: int
    loss: float
    margin: float | None
    train_chosen_nats: float
    train_rejected_nats: float | None
    test_chosen_nats: float | None
    test_rejected_nats: float | None
    test_gap_nats: float | None
    facts_gap_nats: float | None
    neutral_nats: float


class Question(_Part):
    """What is asked after training: turns as (role, text), the wanted answer and the other."""

    turns: tuple[tuple[Literal["system", "user", "assistant"], str], ...] = Field(min_length=1)
    wanted: str = Field(min_length=1)
    other: str = Field(min_length=1)


class PairForecast(_Part):
    """One pair, expected at the end of the run.

    question     what is asked; None for a pair that is trained on, which ``id`` names
    role         target, paraphrase; neighbour or control for facts that should not move
    start_nats   gap per token before training; gap_nats: expected after it
    chosen_nats, rejected_nats  expected movement of the answers
    right        probability that the wanted answer ends likelier per token
    """

    id: str
    split: Literal["train", "test"]
    role: str
    start_nats: float
    gap_nats: float
    chosen_nats: float
    rejected_nats: float
    p_correct: float = Field(ge=0, le=1)
    question: Question | None = None

    @model_validator(mode="after")
    def _is_asked(self) -> PairForecast:
        if self.counts and self.question is None:
            raise ValueError("question: a pair of the test split is asked again after training, and has one")
        return self

    @property
    def counts(self) -> bool:
        """Whether it is a question of the test split that training is to flip."""
        return self.split == "test" and self.role in {"target", "paraphrase"}


class Flips(_Part):
    """Pairs of the test split: how many are wrong per token before, and expected to be right after. 95 % interval."""

    pairs: int
    wrong: int
    expected: float
    low: float
    high: float

    @property
    def text(self) -> str:
        """In words."""
        return (
            f"{self.expected:.1f} [{self.low:.0f}, {self.high:.0f}] of {self.wrong} pairs {WRONG} are expected to flip"
        )


class SweepPoint(_Part):
    """A run with other settings. guard_utilisation and extrapolation as in a forecast; None: it was not simulated."""

    options: dict[str, Any]
    steps: int
    flips: Flips | None
    margin: float | None
    test_gap_nats: float | None
    predicted_stop: PredictedStop | None
    guard_utilisation: float | None
    extrapolation: float | None
    seconds: float

    @property
    def reachable_nats(self) -> float | None:
        """The expected shift at the end, or in proportion up to where the guard is expected to stop."""
        if self.test_gap_nats is None:
            return None
        share = 1.0 if self.predicted_stop is None else self.predicted_stop.step / max(1, self.steps)
        return self.test_gap_nats * min(1.0, share)

    @property
    def safe(self) -> bool:
        """Whether the run is expected to end by itself, well inside the guard's limits and what the pilot saw."""
        return (
            self.predicted_stop is None
            and (self.guard_utilisation is None or self.guard_utilisation <= SAFE_UTILISATION)
            and (self.extrapolation is None or self.extrapolation <= MAX_EXTRAPOLATION)
        )


class Verdict(_Part):
    """The answer, and why. ``none``: too little to judge by."""

    kind: Kind
    reasons: tuple[str, ...]
    advice: tuple[str, ...]


class Forecast(_Part):
    """Expected, not measured; made and written before the first step of the run that it is about.

    outlooks        the pairs, one by one
    moments         the run, as simulated
    trouble         where the guard is expected to stop it
    guard_utilisation  largest part of one of the guard's limits that is expected to be reached
    extrapolation   how far the run goes, as a multiple of the pilot's way: beyond 4 it is a guess
    settings        other settings, simulated on the same gradients
    sampling_error  relative error of sums over the sampled coordinates
    stand_ins       trained examples without gradients of their own: others take their places
    unknown         what cannot be forecast for this method, and why
    seconds         of each part of the work
    """

    schema_version: int = SCHEMA
    model: str
    data: str
    intervention: str
    options: dict[str, Any]
    steps: int
    verdict: Verdict
    cost: FlipCost | None
    flips: Flips | None = None
    signal: Signal | None = None
    pilot: PilotReport | None = None
    predicted_stop: PredictedStop | None = None
    guard_utilisation: float | None = None
    extrapolation: float | None = None
    step_forecasts: tuple[StepForecast, ...] = ()
    pair_forecasts: tuple[PairForecast, ...] = ()
    settings: tuple[SweepPoint, ...] = ()
    sampling_error: float | None = None
    unsampled_examples: int = 0
    unknown: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: dict[str, float] = {}
    provenance: dict[str, Any] = {}

    to_pandas = frames.to_pandas
    _repr_html_ = frames.repr_html

    @property
    def summary(self) -> str:
        """Verdict, flips, stop and its cause in one line, for whoever is about to start the run."""
        kind, flips, stop = self.verdict.kind, self.flips, self.predicted_stop
        parts: list[str] = ["no verdict" if kind == "none" else kind]
        if kind in {"none", "nothing to flip"}:
            parts += self.verdict.reasons[:1]
        if flips is not None and flips.wrong:
            parts.append(flips.text)
        if stop is not None:
            parts.append(f"the guard is expected to stop the run about step {stop.step}: {stop.cause}")
        elif self.pilot is not None and self.pilot.predicted_stop is not None:
            parts.append(f"the guard stopped the pilot: {self.pilot.predicted_stop.cause}")
        elif self.guard_utilisation is not None:
            parts.append(f"no stop is expected ({percent(self.guard_utilisation)} of a limit of the guard is reached)")
        return "; ".join(parts)

    def plot(self) -> Any:
        """An altair chart: the run as it is expected, step by step."""
        from conviction.forecasting.charts import expected_run_chart

        return expected_run_chart(self)

    def table(self) -> frames.Table:
        """One row a pair: id, split, role, gap before and expected after (nats per token), p_correct."""
        columns = ["id", "split", "role", "start_nats", "gap_nats", "chosen_nats", "rejected_nats", "p_correct"]
        title = f"{self.intervention} on {self.data}: {self.verdict.kind}: {'; '.join(self.verdict.reasons)}"
        return frames.Table(title, [{name: getattr(p, name) for name in columns} for p in self.pair_forecasts], columns)


class ForecastScore(_Part):
    """A frozen forecast against what happened, on pairs of the test split.

    Of a run that the guard stopped, whose model is that of an earlier step, only the stop is compared.

    spearman         rank correlation of expected and real movement of the gap, pair by pair
    expected_nats, real_nats   mean movement of the gap, per token; relative_error of the former
    chosen_nats, rejected_nats  mean movement of the answers, expected and real
    wrong            per token before training, as frozen in the forecast
    flips            really flipped, of the ``wrong``; expected_flips: before
    brier            mean squared error of the probabilities to end right, over the wrong pairs;
                     brier_constant: of the best constant guess, known only afterwards
    trip, expected_trip   step at which the guard stopped; trip_error: relative
    """

    pairs: int
    spearman: float | None
    expected_nats: float
    real_nats: float | None
    relative_error: float | None
    chosen_nats: tuple[float, float] | None
    rejected_nats: tuple[float, float] | None
    wrong: int
    flips: int | None
    expected_flips: float
    brier: float | None
    brier_constant: float | None
    guard_stop: int | None
    predicted_stop_step: int | None
    stop_error: float | None

    to_pandas = frames.to_pandas
    _repr_html_ = frames.repr_html

    def plot(self) -> Any:
        """An altair chart: expected beside real movement."""
        from conviction.forecasting.charts import score_chart

        return score_chart(self)

    def table(self) -> frames.Table:
        """One row a quantity: what was expected of it, and what happened (NaN: it was not measured)."""
        nothing = (None, None)
        rows = {
            "stopped at step": (self.predicted_stop_step, self.guard_stop),
            "gap moved, nats per token": (self.expected_nats, self.real_nats),
            "wanted answers moved, nats": self.chosen_nats or nothing,
            "other answers moved, nats": self.rejected_nats or nothing,
            f"flips of {self.wrong} pairs {WRONG}": (self.expected_flips, self.flips),
        }
        columns = ["quantity", "expected", "happened"]
        lines = [dict(zip(columns, (name, *pair), strict=True)) for name, pair in rows.items()]
        return frames.Table(f"a forecast held to what happened, on {self.pairs} pairs", lines, columns)
