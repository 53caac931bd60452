"""When training must stop: limits, readings, and the judgement of one by the other. Pure; no torch here.

A limit says how far a model may move from where it began before it counts as
breaking. None of them is a theorem: ``docs/guard.md`` shows the runs that each
was calibrated on. What each watches:

* chosen answers losing probability: likelihood displacement (Razin et al. 2410.08847);
* neutral text and entropy: mass squeezed onto few tokens (Ren & Sutherland
  2407.10490), falling entropy and top-k mass (Shi et al. 2410.11677);
* greedy samples: what a user would see;
* loss, margin and their curvature: the signs that a practitioner saw before a
  collapse. Alone they prove nothing (a flip at β = 0.3 passes a margin of 5 in
  good health), so by default they only make the guard look more often.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from conviction.core.options import check_settings, setting

__all__ = [
    "Guard",
    "GuardStop",
    "GuardVerdict",
    "SampleReading",
    "StepReading",
    "judge",
    "sample_violations",
    "sampling_is_due",
]

Zone = Literal["healthy", "warning", "stop"]


@dataclass(frozen=True, kw_only=True)
class Guard:
    """Limits of a healthy run. Differences are from the model as it was before the first step."""

    mode: Literal["strict", "default", "off", "none"] = setting(
        "default",
        "strict: the early signs stop a run as well; off: only what is not a number stops it; "
        "none: nor is anything else read",
    )
    max_chosen_drop: float = setting(0.5, "nats per token that chosen answers may lose, mean of three steps", above=0)
    max_neutral_drop: float = setting(0.1, "nats per token that neutral text may lose", above=0)
    max_entropy_drop: float = setting(
        0.3, "share by which next-token entropy on held-out prompts may fall", above=0, at_most=1
    )
    max_top_mass_drop: float = setting(
        0.2, "probability that the ten likeliest tokens on held-out prompts may lose", above=0, at_most=1
    )
    max_repetition: float = setting(0.25, "rise of the share of repeated 4-grams in greedy samples", above=0, at_most=1)
    max_non_alphanumeric: float = setting(
        0.25, "rise of the share of visible characters that are no letters or digits", above=0, at_most=1
    )
    min_subject: float = setting(
        0.15, "least share of the samples' words that stand in the question or its first answer", at_least=0, at_most=1
    )
    early_loss: float = setting(0.3, "a preference loss below it in the first tenth of a run is a sign", above=0)
    margin_sign: float = setting(1.5, "a reward margin over it is a sign", above=0)
    margin_cap: float = setting(2.0, "a reward margin over it is a second sign", above=0)
    sample_every: int = setting(9, "steps (facts) between greedy samples; after a sign a third of it", at_least=1)
    sample_tokens: int = setting(32, "tokens of a greedy sample", at_least=8)

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def idle(self) -> bool:
        """Whether limits may be passed."""
        return self.mode in {"off", "none"}


@dataclass(frozen=True, kw_only=True)
class SampleReading:
    """Measures of greedy samples, each against the same of the untouched model."""

    repetition_rise: float
    non_alphanumeric_rise: float
    empty: int  # more empty samples than before
    subject: float  # share of the words said that stand in the question or in the first answer to it


@dataclass(frozen=True, kw_only=True)
class StepReading:
    """What is known after one step. None: not measured, or without meaning for this method."""

    step: int
    loss: float
    grad_norm: float
    margin: float | None = None
    chosen_drop: float | None = None
    neutral_drop: float | None = None
    entropy_change: float | None = None
    top_mass_drop: float | None = None
    sample: SampleReading | None = None

    @property
    def finite(self) -> bool:
        """Whether every number is one."""
        numbers = (self.loss, self.grad_norm, self.margin, self.chosen_drop, self.neutral_drop, self.entropy_change)
        return all(x is None or math.isfinite(x) for x in numbers)


@dataclass(frozen=True)
class GuardVerdict:
    """A zone and why. ``signs`` are the practitioner's early signs, ``broken`` the limits that are passed."""

    zone: Zone
    violations: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class GuardStop:
    """Why the guard stopped, and where.

    step           after which it stopped, restored_step: whose weights the model has (0: untouched); None: of an
                   intervention without steps
    flip_margin    the margin that flips would have taken, in words
    """

    reasons: tuple[str, ...]
    step: int | None = None
    restored_step: int | None = None
    flip_margin: str = ""

    @property
    def text(self) -> str:
        """In one line."""
        reasons = "; ".join(self.reasons)
        return reasons if self.step is None else f"step {self.step}: {reasons}"


def judge(history: Sequence[StepReading], guard: Guard, total_steps: int) -> GuardVerdict:
    """Judge the last reading in the light of those before it."""
    violations = tuple(_violations(history, guard))
    warnings = tuple(_warnings(history, guard, total_steps))
    stops = violations + warnings if guard.mode == "strict" else violations
    if stops and (not guard.idle or not history[-1].finite):
        return GuardVerdict("stop", stops, warnings)
    return GuardVerdict("warning" if violations or warnings else "healthy", violations, warnings)


def sampling_is_due(step: int, guard: Guard, last: GuardVerdict) -> bool:
    """Whether greedy samples are to be written after this step (counted from 1); an idle guard does not hurry."""
    calm = last.zone == "healthy" or guard.idle
    interval = guard.sample_every if calm else max(1, guard.sample_every // 3)
    return step % interval == 0


def _violations(history: Sequence[StepReading], guard: Guard) -> list[str]:
    now = history[-1]
    if not now.finite:
        return [f"the loss or gradient is not a number (loss {now.loss}, gradient norm {now.grad_norm})"]
    found = []
    drops = [r.chosen_drop for r in history[-3:] if r.chosen_drop is not None]
    if len(drops) == 3 and (drop := math.fsum(drops) / 3) > guard.max_chosen_drop:
        found.append(f"chosen answers lost {drop:.2f} nats per token (limit {guard.max_chosen_drop:g})")
    if _over(now.neutral_drop, guard.max_neutral_drop):
        found.append(f"neutral text lost {now.neutral_drop:.2f} nats per token (limit {guard.max_neutral_drop:g})")
    if now.entropy_change is not None and -now.entropy_change > guard.max_entropy_drop:
        found.append(f"entropy fell by {-now.entropy_change:.0%} (limit {guard.max_entropy_drop:.0%})")
    if _over(now.top_mass_drop, guard.max_top_mass_drop):
        found.append(f"the ten likeliest tokens lost {now.top_mass_drop:.2f} (limit {guard.max_top_mass_drop:g})")
    return found if now.sample is None else found + sample_violations(now.sample, guard)


def sample_violations(sample: SampleReading, guard: Guard) -> list[str]:
    """The limits of samples that are passed, in words."""
    found = []
    if sample.repetition_rise > guard.max_repetition:
        found.append(f"samples repeat themselves (+{sample.repetition_rise:.0%}, limit {guard.max_repetition:.0%})")
    if sample.non_alphanumeric_rise > guard.max_non_alphanumeric:
        found.append(
            f"samples turn into signs (+{sample.non_alphanumeric_rise:.0%}, limit {guard.max_non_alphanumeric:.0%})"
        )
    if sample.empty > 0:
        found.append(f"{sample.empty} samples became empty")
    if sample.subject < guard.min_subject:
        found.append(f"samples lost their subject ({sample.subject:.0%} of their words, limit {guard.min_subject:.0%})")
    return found


def _warnings(history: Sequence[StepReading], guard: Guard, total_steps: int) -> list[str]:
    now = history[-1]
    if now.margin is None:
        return []
    found = []
    if now.loss < guard.early_loss and now.step <= total_steps / 10:
        found.append(f"loss {now.loss:.2f} within the first tenth of the run (sign under {guard.early_loss:g})")
    for bound in (guard.margin_cap, guard.margin_sign):
        if now.margin > bound:
            found.append(f"reward margin {now.margin:.2f} (sign over {bound:g})")
            break
    if (growth := _acceleration([r.margin for r in history if r.margin is not None])) is not None:
        found.append(f"the margin accelerates ({growth[0]:+.2f}, then {growth[1]:+.2f} in six steps)")
    return found


def _acceleration(margins: Sequence[float], window: int = 6) -> tuple[float, float] | None:
    """Growth over the last two windows of the smoothed curve, if it speeds up; None if it levels off."""
    if len(margins) < 3 * window:
        return None
    old, middle, new = (math.fsum(margins[-k * window : len(margins) - (k - 1) * window]) / window for k in (3, 2, 1))
    first, second = middle - old, new - middle
    return (first, second) if first > 0.05 and second > 1.5 * first else None


def _over(value: float | None, limit: float) -> bool:
    return value is not None and value > limit
