"""What a study concludes: one result an arm, and how each was judged.

The verdict is a lattice and no average: what breaks the model is not made up
for by how far it moved.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from conviction.core import frames
from conviction.core.record import Finite, Frozen
from conviction.core.run import Failure
from conviction.core.wording import counted
from conviction.forecasting.records import ForecastScore
from conviction.probing.depth_records import ControlResult, Property

SCHEMA = 6

Verdict = Literal["none", "not shown", "surface", "shallow", "deep", "broken"]
DEPTHS: tuple[Verdict, ...] = ("not shown", "none", "surface", "shallow", "deep")
"""From what says least to the deepest; 'broken' is beside them."""


class SeedRun(Frozen):
    """An arm's training with one random seed, judged by itself: what it moved, and what it harmed.

    folder            relative to the study's
    seconds           of the training
    guard_stop        why the guard stopped it; None: it did not
    shift_nats        nats per token on test questions, beyond a placebo's if the arm has one; low, high: 95 %, over
                      propositions
    harm              what was shown to be lost, in words: the seed broke the model if there is any
    failure           why there is no reading
    """

    seed: int
    folder: str
    seconds: float | None = None
    guard_stop: str | None = None
    shift_nats: Finite = None
    low: Finite = None
    high: Finite = None
    harm: tuple[str, ...] = ()
    failure: Failure | None = None


class Kept(Frozen):
    """Of ``of`` answers that the untouched model has right, facts and what either side holds, so many were kept."""

    kept: int
    of: int

    @property
    def share(self) -> float:
        """0 to 1."""
        return self.kept / self.of


class Judgement(Frozen):
    """What a change is, and why.

    ceiling  the deepest verdict that can be read on the untouched model, by the positive controls; None: every one
    seeds    of the training, where it was repeated, failed ones among them: the shift is one over all that were read,
             harm that of the worst, and what else there is that of the first
    kept     right answers of the untouched model that the changed one has as well, with the seed that kept least;
             None: it had none
    """

    schema_version: int = SCHEMA
    model: str
    verdict: Verdict
    ceiling: Verdict | None = None
    reason: str
    properties: tuple[Property, ...]
    kept: Kept | None = None
    placebo: str | None = None
    seeds: tuple[SeedRun, ...] = ()

    @property
    def read_seeds(self) -> list[SeedRun]:
        """Seeds that did not fail."""
        return [one for one in self.seeds if one.failure is None]

    @property
    def broken_seeds(self) -> list[SeedRun]:
        """Seeds that broke the model."""
        return [one for one in self.seeds if one.harm]

    @property
    def words(self) -> str:
        """The verdict; in how many seeds the model was broken; whether it lets no deeper one be read."""
        if self.broken_seeds:
            return f"{self.verdict} in {len(self.broken_seeds)} of {len(self.read_seeds)} seeds"
        capped = self.ceiling is not None and self.verdict == self.ceiling
        return f"{self.verdict} (no deeper verdict can be read on this model)" if capped else self.verdict

    def find(self, metric: str) -> Property | None:
        """The property of that name."""
        return next((p for p in self.properties if p.metric == metric), None)

    @property
    def change(self) -> Property | None:
        """How far the model moved: the first property of a metric of the kind 'change'."""
        from conviction.probing.metrics import properties_of_kind

        return next(iter(properties_of_kind(self.properties, "change")), None)


class Arm(Frozen):
    """One intervention in a study.

    folder            its run folder, relative to the study's
    applied_in        the folder that it was applied in, if by another run; None: its own
    seconds, peak_mb  of applying it, and the most memory that the process held meanwhile; None: not measured
    guard_stop        why the guard stopped it; None: it did not. These three are those of the first seed
    seeds_missing     seeds that the study was asked for by their number, and that failed or for which no time was left
    extra_tokens      tokens that a question costs more at run time, mean over the test questions
    forecast          the frozen forecast's verdict, ``forecast_score`` how it fared; None: it makes none
    notes             what could not be measured, and why
    failure           why there is no judgement; its kind is BudgetSpent where no time was left to try
    """

    name: str
    folder: str
    applied_in: str | None = None
    changes: str
    settings: dict[str, Any]
    seconds: float | None = None
    peak_mb: int | None = None
    guard_stop: str | None = None
    seeds_missing: int = 0
    extra_tokens: float | None = None
    judgement: Judgement | None = None
    forecast: str | None = None
    forecast_score: ForecastScore | None = None
    notes: tuple[str, ...] = ()
    failure: Failure | None = None


class Study(Frozen):
    """All arms, in the order they were run.

    verdict   of the probe, in words, before anything was done
    controls  what the metrics' positive controls did on the untouched model: which can be read there
    folder   where it lies, which ``report`` and the arms' own folders go by; None: it was read from elsewhere
    """

    schema_version: int = SCHEMA
    model: str
    topic: str
    target: str
    other: str
    verdict: str
    controls: tuple[ControlResult, ...] = ()
    arms: tuple[Arm, ...]
    provenance: dict[str, Any]
    folder: Path | None = Field(default=None, exclude=True, repr=False)

    @property
    def missing(self) -> list[str]:
        """Arms that were not judged; why is in their ``failure``."""
        return [arm.name for arm in self.arms if arm.judgement is None]

    @property
    def unfinished(self) -> list[str]:
        """What the same command with the same run folder tries again: arms, and seeds of them, in words."""
        lacking = [f"{counted(arm.seeds_missing, 'seed')} of {arm.name}" for arm in self.arms if arm.seeds_missing]
        return self.missing + lacking

    to_pandas = frames.to_pandas
    _repr_html_ = frames.repr_html

    def plot(self) -> Any:
        """An altair chart: how far every arm moved the model, and which answers it kept; None where none was judged."""
        from conviction.studies.charts import comparison_chart

        return comparison_chart(self)

    def table(self) -> frames.Table:
        """One row an arm: verdict, the value of every property (``shift`` in nats per token), costs, failure."""
        rows: list[dict[str, Any]] = []
        for arm in self.arms:
            judged = arm.judgement
            verdict = judged.verdict if judged is not None else None
            values = {p.metric: p.value for p in judged.properties} if judged is not None else {}
            costs = {name: getattr(arm, name) for name in ("seconds", "peak_mb", "extra_tokens", "guard_stop")}
            failure = arm.failure.message if arm.failure is not None else None
            rows.append({"arm": arm.name, "verdict": verdict, **values, **costs, "failure": failure})
        first, last = ["arm", "verdict"], ["seconds", "peak_mb", "extra_tokens", "guard_stop", "failure"]
        metrics = dict.fromkeys(name for row in rows for name in row if name not in (*first, *last))
        return frames.Table(f"{self.model} on {self.topic}, towards {self.target}", rows, [*first, *metrics, *last])
