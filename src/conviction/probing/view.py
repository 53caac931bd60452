"""Whether a change moved the model's view: held-out propositions, asked before and after.

A run that ended in health may have moved nothing, so that ``apply`` says both. This is the gap alone, without
controls and placebo; what a change is worth, a study or ``compare`` judges.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field

from conviction.core.context import RunContext
from conviction.core.protocols import LanguageModel
from conviction.core.record import Frozen
from conviction.core.statistics import mean_test
from conviction.data.topic import Topic
from conviction.probing.gaps import estimate, measure_gaps
from conviction.probing.queries import evidence, plain_queries, score
from conviction.probing.records import GapEstimate, Sample

__all__ = ["ViewChange", "measure_view_change"]

SCHEMA = 1


class ViewChange(Frozen):
    """Gaps of the test split's propositions (means over wordings) before and after a change, nats per token.

    before, after  proposition → gap towards ``target``
    shift_nats     mean of after less before, with its 95 % interval over propositions
    p_value        two-sided sign-flip test
    wrong, flipped of the propositions, those that were not on the target's side before, and of these now are
    lost           of those that were on it before, those that are no longer
    """

    schema_version: int = SCHEMA
    model: str
    topic: str
    target: str
    before: dict[str, float]
    after: dict[str, float]
    before_nats: float
    after_nats: float
    shift_nats: GapEstimate
    p_value: float
    wrong: int
    flipped: int
    lost: int
    evidence: tuple[Sample, ...] = Field(default=(), exclude=True, repr=False)

    @property
    def text(self) -> str:
        """In one line."""
        n, shift = len(self.before), self.shift_nats
        moved, interval = "not shown to have moved", "no interval"
        if shift.low is not None and shift.high is not None:
            interval = f"{shift.low:+.2f} to {shift.high:+.2f}"
            moved = "moved" if shift.low > 0 else "moved away" if shift.high < 0 else moved
        lost = f", {self.lost} of {n - self.wrong} lost" if self.lost else ""
        return (
            f"{moved}: gap {self.before_nats:+.2f} → {self.after_nats:+.2f} nats per token towards {self.target}, "
            f"shift {shift.mean:+.2f} (95 % {interval}), {self.flipped} of {self.wrong} flipped{lost}; "
            f"{n} held-out propositions"
        )


def measure_view_change(
    before: LanguageModel, after: LanguageModel, topic: Topic, ctx: RunContext | None = None
) -> ViewChange | None:
    """Ask both models the topic's test split, targets and paraphrases. None: the topic holds nothing out."""
    items = [item for item in topic.of_role("target", "paraphrase") if item.split == "test"]
    if not items:
        return None
    stage, queries = (ctx or RunContext()).progress, plain_queries(items)
    gaps: dict[str, dict[str, float]] = {}
    samples: list[Sample] = []
    for name, model in (("before", before), ("after", after)):
        scores = score(model, queries, stage(f"asking held-out propositions, {name}"))
        measured = measure_gaps("gap", "plain", items, scores, topic.target, topic.other)
        gaps[name] = {m.item: m.value for m in measured}
        samples += [s.model_copy(update={"id": f"{name}/{s.id}"}) for s in evidence(model, queries, scores)]
    return _compare(topic, after.id, gaps["before"], gaps["after"], tuple(samples))


def _compare(
    topic: Topic, model: str, before: dict[str, float], after: dict[str, float], samples: tuple[Sample, ...]
) -> ViewChange:
    test = mean_test(np.array([after[name] - gap for name, gap in before.items()]))
    wrong = [name for name, gap in before.items() if gap <= 0]
    right = [name for name in before if name not in wrong]
    counts: dict[str, Any] = {
        "wrong": len(wrong),
        "flipped": sum(after[name] > 0 for name in wrong),
        "lost": sum(after[name] <= 0 for name in right),
    }
    return ViewChange(
        model=model,
        topic=topic.name,
        target=topic.target,
        before=before,
        after=after,
        before_nats=sum(before.values()) / len(before),
        after_nats=sum(after.values()) / len(after),
        shift_nats=estimate(test.interval),
        p_value=test.p_value,
        evidence=samples,
        **counts,
    )
