"""The pictures of a run folder, each with what it shows in words for those who cannot see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from conviction.core.charts import PAGE, svg
from conviction.core.wording import percent
from conviction.forecasting.charts import agreement_chart, expected_run_chart
from conviction.interventions.charts import training_chart
from conviction.probing.charts import bias_chart
from conviction.probing.records import Scorecard
from conviction.reporting.run_folder import ArmFolder, RunFolder
from conviction.studies.charts import NARROW, comparison_chart, dose_chart
from conviction.studies.pareto import position
from conviction.studies.records import Study


@dataclass(frozen=True)
class Picture:
    """A chart, what it shows in words, and the same as it is made for a phone, where that is another one."""

    words: str
    chart: Any
    narrow: Any = None

    @property
    def svg(self) -> str:
        """Its elements."""
        return svg(self.chart, self.words, self.narrow)


def pictures_of(run: RunFolder) -> dict[str, Picture]:
    """By name."""
    pictures: dict[str, Picture] = {}
    if run.study is not None and (chart := comparison_chart(run.study, PAGE)) is not None:
        narrow = comparison_chart(run.study, PAGE, width=NARROW)
        pictures["comparison"] = Picture(_comparison_in_words(run.study), chart, narrow)
    if run.before is not None:
        pictures["bias"] = Picture(_bias_in_words(run.before), bias_chart(run.before, PAGE))
    for arm in run.arms:
        pictures |= _pictures_of_arm(run, arm)
    return pictures


def _pictures_of_arm(run: RunFolder, arm: ArmFolder) -> dict[str, Picture]:
    pictures: dict[str, Picture] = {}
    stop = arm.outcome.guard_stop if arm.outcome is not None else None
    if (chart := training_chart(arm.steps, stop.step if stop is not None else None, PAGE)) is not None:
        pictures[f"{arm.name}-training"] = Picture(f"Training curves of {arm.name}{_loss_in_words(arm.steps)}", chart)
    if arm.tuning is not None and (chart := dose_chart(arm.tuning, PAGE)) is not None:
        words = f"Shift at every dose of the runs that settings of {arm.name} were searched by: {arm.tuning.summary}"
        pictures[f"{arm.name}-doses"] = Picture(words, chart)
    if arm.forecast is not None and arm.forecast.step_forecasts:
        words = f"The run of {arm.name} as it was expected: {arm.forecast.summary}"
        pictures[f"{arm.name}-expected"] = Picture(words, expected_run_chart(arm.forecast, PAGE))
    if (chart := agreement_chart(moved := moved_questions(run, arm), PAGE)) is not None:
        expected, real = (sum(values) / len(values) for values in zip(*moved, strict=True))
        words = (
            f"Expected and real movement of {len(moved)} questions under {arm.name}: "
            f"in the mean {expected:+.2f} and {real:+.2f} nats per token"
        )
        pictures[f"{arm.name}-forecast"] = Picture(words, chart)
    return pictures


def moved_questions(run: RunFolder, arm: ArmFolder) -> list[tuple[float, float]]:
    """(expected, real) movement of every test question that a forecast was made for, nats per token."""
    if arm.forecast is None or run.before is None or (arm.arm and arm.arm.guard_stop):
        return []  # a run that was stopped left the model of an earlier step
    start = {row.item: row.gap_nats for row in run.before.rows}
    return [
        (o.gap_nats - o.start_nats, arm.gaps[o.id] - start[o.id])
        for o in arm.forecast.pair_forecasts
        if o.counts and o.id in arm.gaps and o.id in start
    ]


def _comparison_in_words(study: Study) -> str:
    placed = [(arm.name, place) for arm in study.arms if (place := position(arm)) is not None]
    moved = [f"{name} {place.shift:+.2f}, {percent(place.kept)}" for name, place in placed]
    return (
        f"How far each intervention moved the model towards {study.target}, nats per token, and which part of its "
        f"right answers it kept: {'; '.join(moved)}"
    )


def _bias_in_words(card: Scorecard) -> str:
    gaps = [row.gap_nats for row in card.rows if row.role == "target"]
    if not gaps:
        return f"Gap of every question towards {card.target}"
    return (
        f"Gap of every question towards {card.target}, nats per token: {sum(gap > 0 for gap in gaps)} of {len(gaps)} "
        f"are above 0; from {min(gaps):+.2f} to {max(gaps):+.2f}"
    )


def _loss_in_words(steps: Sequence[Any]) -> str:
    losses = [step["loss"] for step in steps if isinstance(step.get("loss"), int | float)]
    return f": loss from {losses[0]:.2f} to {losses[-1]:.2f} in {len(steps)} steps" if losses else ""
