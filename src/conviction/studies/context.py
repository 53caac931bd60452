"""What the arms of a study share, and what a study was begun with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Literal

from conviction.config.plan import Plan
from conviction.core.context import RunContext
from conviction.core.options import flat
from conviction.core.protocols import LanguageModel
from conviction.core.run import Run
from conviction.data.topic import Topic
from conviction.data.training_data import TrainingData
from conviction.errors import RunError
from conviction.probing.depth import with_reference
from conviction.probing.depth_records import Measurements
from conviction.probing.metrics import load_metrics
from conviction.probing.records import Scorecard
from conviction.studies.judge import correct_over_arms
from conviction.studies.placebo import placebo_data
from conviction.studies.records import Arm, Study

BENIGN_STEPS = 10


@dataclass(frozen=True, kw_only=True)
class StudyDesign:
    """How arms are measured.

    load          gives a model by the name of its folder, in the dtype of the untouched one
    benign_steps  benign training steps after which durability is measured, of every arm; 0: of none; None:
                  ``BENIGN_STEPS``, of arms whose verdict it may change
    placebo       train each trained arm once more on another subject, to take that shift off
    tune_minutes  of searching for settings, shared by the arms that have some to search; "auto": by the budget;
                  None: no search
    seeds         that every trained arm is trained with; None: three as far as a budget holds them, one without one
    """

    load: Callable[[str], LanguageModel]
    benign_steps: int | None = None
    placebo: bool = True
    tune_minutes: float | Literal["auto"] | None = None
    seeds: int | None = None

    @property
    def worn_for(self) -> int:
        """Benign training steps of an arm whose durability is measured."""
        return BENIGN_STEPS if self.benign_steps is None else self.benign_steps


@dataclass(frozen=True, kw_only=True)
class StudyContext:
    """What the arms of a study share.

    before, baseline  probe and measurements of the untouched model
    run               the study's folder; None: nothing is kept there
    after_benign      the untouched model after benign training, by its stages: shared by arms without own weights
    references        of durability's positive control: one, once an arm has asked for it
    reading_seconds   that measuring an arm took in this attempt, by its name

    Raises RunError for what was measured with other questions, in an earlier attempt.
    """

    topic: Topic
    model: LanguageModel
    before: Scorecard
    baseline: Measurements
    design: StudyDesign
    ctx: RunContext
    run: Run | None = None
    after_benign: dict[tuple[tuple[int, float, str], ...], LanguageModel] = field(default_factory=dict)
    references: list[Measurements] = field(default_factory=list)
    reading_seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_questions(self.topic, self.before, self.baseline)

    @property
    def untouched(self) -> Measurements:
        """The baseline, with the reference of durability where there is one."""
        return with_reference(self.baseline, self.references[0]) if self.references else self.baseline


def study_config(
    topic: Topic,
    model: LanguageModel,
    design: StudyDesign,
    *,
    data: TrainingData | None = None,
    arms: Sequence[Plan] = (),
    applied: Sequence[str] = (),
) -> Mapping[str, Any]:
    """What a study is begun with: resumed with something else, its numbers would not belong together.

    applied  folders and digests of runs that were applied apart
    """
    described = model.describe()
    data = data or TrainingData.from_topic(topic)
    on_another = placebo_data(topic, data, documents=True)
    return {
        "model": {name: described.get(name) for name in ("id", "fingerprint", "dtype")},
        "target": topic.target,
        "data": [data.digest, on_another and on_another.digest],
        "arms": {plan.intervention.name: [flat(plan.intervention), flat(plan.guard)] for plan in arms},
        "applied": list(applied),
        "benign_steps": design.benign_steps,
        "placebo": design.placebo,
        "tune_minutes": design.tune_minutes,
        "seeds": design.seeds,
        "metrics": [metric.name for metric in load_metrics()],
    }


def check_questions(topic: Topic, *measured: Measurements | Scorecard) -> None:
    """Raise RunError for what was measured with other questions."""
    if any(one.provenance.get("topic_sha256") != topic.digest for one in measured):
        raise RunError(
            f"the topic '{topic.name}' has changed since this study began", hint="give --run a new folder, or undo that"
        )


def summarize(shared: StudyContext, arms: Sequence[Arm]) -> Study:
    """The study as far as it has come, its judgements corrected over its arms."""
    topic, design = shared.topic, shared.design
    judged = [arm.judgement for arm in arms if arm.judgement is not None]
    corrected = iter(correct_over_arms(judged, shared.untouched))
    arms = [arm if arm.judgement is None else arm.model_copy(update={"judgement": next(corrected)}) for arm in arms]
    return Study(
        model=shared.model.id,
        topic=topic.name,
        target=topic.target,
        other=topic.other,
        verdict=shared.before.summary.verdict,
        controls=shared.untouched.controls,
        arms=tuple(arms),
        provenance={
            "conviction": version("conviction"),
            "topic_sha256": topic.digest,
            "benign_steps": design.benign_steps,
            "placebo": design.placebo,
            "seeds": design.seeds,
            "model": shared.model.describe(),
        },
    )
