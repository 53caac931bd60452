"""The answer in words: train, train otherwise, or do something else. Pure; every reason names its number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from conviction.core.wording import settings_in_words
from conviction.forecasting.records import (
    MAX_EXTRAPOLATION,
    SAFE_UTILISATION,
    FlipCost,
    Flips,
    Kind,
    PilotReport,
    PredictedStop,
    Signal,
    StepForecast,
    SweepPoint,
    Verdict,
)

__all__ = ["LEAST_PAIRS", "UNDECIDED", "judge_forecast"]

UNDECIDED = frozenset({"style only", "not at these settings", "not within the guard's limits"})
"""Kinds of a verdict at the planned settings alone, where others are worth a try."""

LEAST_PAIRS = 8
ENOUGH = 0.5  # of the wrong pairs flip: the claim has moved, not single questions
STYLE = 2.0  # times the difference of the answers' movements that both have in common
CHANCE = 0.05


def judge_forecast(
    *,
    pairs: int,
    flips: Flips | None,
    predicted_stop: PredictedStop | None,
    guard_utilisation: float,
    extrapolation: float,
    last: StepForecast,
    settings: Sequence[SweepPoint],
    cost: FlipCost | None,
    signal: Signal | None,
    pilot: PilotReport,
) -> Verdict:
    """Weigh what was found. Without questions, or with fewer than eight pairs, there is no verdict."""
    seen = list(_observations(flips, predicted_stop, guard_utilisation, extrapolation, cost, signal, pilot))
    if flips is None or min(pairs, flips.pairs) < LEAST_PAIRS:
        what = "no questions to hold out" if flips is None else f"{pairs} pairs to train on, {flips.pairs} to ask"
        advice = "give a topic, or --test with pairs that are not trained on; eight of each at least"
        return Verdict(kind="none", reasons=(f"too little to judge by: {what}", *seen), advice=(advice,))
    if not flips.wrong:
        reason = f"the model already finds the wanted answer likelier on all {flips.pairs} test pairs"
        return Verdict(kind="nothing to flip", reasons=(reason, *seen), advice=("leave the model as it is",))
    safe = predicted_stop is None and guard_utilisation <= SAFE_UTILISATION and extrapolation <= MAX_EXTRAPOLATION
    if safe and flips.expected >= ENOUGH * flips.wrong:
        return Verdict(kind="trainable", reasons=tuple(seen), advice=())
    good = sorted(filter(_is_good, settings), key=lambda s: -s.flips.expected if s.flips else 0.0)
    if good:
        named = "; ".join(f"{settings_in_words(s.options)}: {_expected(s.flips)}" for s in good[:3])
        return Verdict(kind="only with these settings", reasons=tuple(seen), advice=(named, "keep the guard on"))
    common, apart = _movement(last)
    if safe and common > STYLE * abs(apart):
        reason = (
            f"both answers move together by {common:+.1f} nats, apart by only {apart:+.1f}: "
            "what is learnt is how an answer looks"
        )
        style = "for style this is the way; for the claim itself: pairs that differ in nothing but the claim"
        return Verdict(kind="style only", reasons=(*seen, reason), advice=(style,))
    planned = _Point("as planned", flips, predicted_stop, guard_utilisation, extrapolation)
    points = [planned, *(_Point.of(setting) for setting in settings if setting.flips is not None)]
    kind, reason = _what_hinders(points)
    return Verdict(kind=kind, reasons=(*seen, reason), advice=tuple(_elsewhere(cost, signal)))


@dataclass(frozen=True)
class _Point:
    """A simulated run at some settings."""

    name: str
    flips: Flips
    stop: PredictedStop | None
    utilisation: float
    extrapolation: float

    @classmethod
    def of(cls, setting: SweepPoint) -> _Point:
        assert setting.flips is not None  # noqa: S101  as its caller has seen
        share, extrapolation = setting.guard_utilisation or 0.0, setting.extrapolation or 0.0
        return cls(settings_in_words(setting.options), setting.flips, setting.predicted_stop, share, extrapolation)

    @property
    def risk(self) -> str:
        """Why it is not safe to do, though the guard is not expected to stop it."""
        risks = []
        if self.utilisation > SAFE_UTILISATION:
            risks.append(f"{self.utilisation:.0%} of a limit of the guard is reached")
        if self.extrapolation > MAX_EXTRAPOLATION:
            risks.append(f"{self.extrapolation:.1f} times as far as the pilot, where a forecast is a guess")
        return " and ".join(risks)


def _what_hinders(points: Sequence[_Point]) -> tuple[Kind, str]:
    """Whether settings stand in the way, or the guard's limits, and which of them."""
    points = sorted(points, key=lambda point: -point.flips.expected)
    enough = [point for point in points if point.flips.expected >= ENOUGH * point.flips.wrong]
    if may := [point for point in enough if point.stop is None]:
        named = "; ".join(f"{point.name}: {_expected(point.flips)}, but {point.risk}" for point in may[:3])
        return "not at these settings", f"these may do, and are not safe to count on: {named}"
    most = points[0]
    if most.stop is not None:
        where = f"the guard is expected to stop it about step {most.stop.step}: {most.stop.cause}"
        return "not within the guard's limits", f"most pairs would flip with {most.name}, and {where}"
    tried = "the planned settings" if len(points) == 1 else f"{len(points)} settings that were tried"
    flips = f"{_expected(most.flips)} ({most.name})"
    return "not at these settings", f"of {tried} none flips half of them, and at the best no limit stops it: {flips}"


def _is_good(setting: SweepPoint) -> bool:
    flips = setting.flips
    return setting.safe and flips is not None and flips.expected >= ENOUGH * flips.wrong


def _observations(
    flips: Flips | None,
    predicted_stop: PredictedStop | None,
    guard_utilisation: float,
    extrapolation: float,
    cost: FlipCost | None,
    signal: Signal | None,
    pilot: PilotReport,
) -> Sequence[str]:
    results = []
    if flips is not None and flips.wrong:
        results.append(f"{_expected(flips)} on the test split")
    if pilot.predicted_stop is not None:
        results.append(f"the guard stopped the pilot: {pilot.predicted_stop.cause}")
    if predicted_stop is not None:
        results.append(
            f"the guard is expected to stop the run about step {predicted_stop.step}: {predicted_stop.cause}"
        )
    elif guard_utilisation > SAFE_UTILISATION:
        results.append(
            f"drift reaches {guard_utilisation:.0%} of a limit of the guard, and forecasts underestimate drift"
        )
    if extrapolation > MAX_EXTRAPOLATION:
        results.append(
            f"the run goes {extrapolation:.1f} times as far as the pilot: "
            f"beyond {MAX_EXTRAPOLATION:g} times a forecast is a guess"
        )
    if cost is not None and cost.wrong:
        results.append(cost.summary)
    if signal is not None:
        common = "point in a common direction" if signal.p_value < CHANCE else "have no common direction"
        results.append(
            f"the pairs' gradients {common} (mean cosine {signal.mean_cosine:+.3f}, signal to noise {signal.snr:.1f}, "
            f"p = {signal.p_value:.3f})"
        )
    return results


def _expected(flips: Flips | None) -> str:
    return "" if flips is None else flips.text


def _movement(last: StepForecast) -> tuple[float, float]:
    """What both answers to a question have in common, and what they differ by, nats."""
    chosen, rejected = last.test_chosen_nats or 0.0, last.test_rejected_nats or 0.0
    return (chosen + rejected) / 2, chosen - rejected


def _elsewhere(cost: FlipCost | None, signal: Signal | None) -> Sequence[str]:
    results = ["a system prompt or retrieval moves answers at once and leaves the weights alone"]
    if signal is not None and signal.p_value >= CHANCE:
        results.append(
            "pairs that the model could have written itself (on-policy), about one claim: these share no direction"
        )
    if cost is not None and 2 * cost.over > cost.wrong:
        results.append("a smaller gap: shorter answers, or intermediate claims that the model almost holds")
    return [*results, "continued pretraining on documents, if the knowledge itself is missing"]
