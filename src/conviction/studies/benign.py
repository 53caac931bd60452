"""Training on top of a change: what of it is left shows how durable it is, and what takes it back how firmly it sits.

Benign training is on neutral text, then on facts that both sides accept. How much of it says anything is shown by a
reference: the untouched model, trained by SFT until it has shifted, which benign training must wear (``durability``'s
positive control). One dose for all models says nothing of some: a model of 200,000 parameters kept 94 % of its shift
through 160 steps of text, and 71 % through 60 of facts. So stages are added, longer and at higher learning rates, until
the reference is worn; arms go through the same. The reversal curve is training on the other side's documents, with the
shift measured after several doses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from conviction.core.context import RunContext
from conviction.core.protocols import LanguageModel, WeightModel
from conviction.core.run import Run
from conviction.data.topic import Topic
from conviction.data.training_data import Document, TrainingData, paragraphs
from conviction.errors import ModelError
from conviction.interventions.pretrain import Pretrain
from conviction.interventions.records import Outcome
from conviction.interventions.sft import Sft
from conviction.models.prompted import PromptedModel
from conviction.probing.depth import measure_depth, measure_reference_controls
from conviction.probing.depth_records import Measurements
from conviction.probing.erosion import (
    REFERENCE,
    REFERENCE_BENIGN,
    eroded,
    halved,
    mean_shift,
    relabelled,
    reversal_metric,
    together,
)
from conviction.probing.health import neutral_text
from conviction.studies.context import StudyContext
from conviction.studies.placebo import placebo_data
from conviction.training.guard import Guard
from conviction.training.settings import Training

Stage = tuple[int, float, Literal["text", "facts"]]
"""Steps of benign training, their learning rate, and what is read."""

TOKENS, PIECES = 128, 2  # of text in a piece, and pieces in a step
# SFT until the reference has shifted as far as the arm: steps at a time, and times at most. The rate is high so that
# few steps do: what is wanted is a shift that may be worn, not a good model.
REFERENCE_STEPS, REFERENCE_TIMES, REFERENCE_RATE = 8, 3, 5e-4
# Of benign training, until the reference erodes: multiples of the design's steps, learning rates, and what is read.
# Neutral text where the kit has no facts to train on.
STAGES: tuple[Stage, ...] = (
    (1, 1e-4, "text"),
    (1, 1e-4, "text"),
    (2, 5e-4, "facts"),
    (4, 1e-3, "facts"),
    (8, 1e-3, "facts"),
)
REVERSAL_STEPS = (2, 2, 4, 8)  # between measurements of the reversal curve: 512 tokens at first, 4,096 in all
RATE = 1e-4  # learning rate of reversing training


def measure_reference(shared: StudyContext, goal: float) -> Measurements | None:
    """The reference of durability, once a study: the shift of an SFT on the untouched model, before and after.

    Stages of benign training are added until they erode it (``benign_stages`` of the provenance has those that were
    made). None where no benign training is wanted.
    goal: nats per token that the reference is to shift by: what the first arm did that asks for it.
    """
    if not shared.design.worn_for or _weights_of(shared.model) is None:
        return None

    def measure() -> Measurements:
        shared.ctx.log("a reference adapter by SFT, and benign training on it: does that erode anything?")
        data = replace(TrainingData.from_topic(shared.topic), held_out=(), topic=None)
        model, before = shared.model, shared.baseline
        for time in range(REFERENCE_TIMES):
            training = Training(learning_rate=REFERENCE_RATE, epochs=8, max_steps=REFERENCE_STEPS, seed=time)
            model = _sound(Sft(training=training).apply(model, data, _quiet(shared))).changed
            before = _shift(shared, model)
            if mean_shift(shared.baseline, before) >= goal:
                break
        stages, worn, after = list[Stage](), model, before
        for stage in _stages(shared.design.worn_for):
            worn = _benign(shared, worn, [stage])
            stages.append(stage)
            after = _shift(shared, worn)
            if eroded(shared.baseline, before, after):
                break
        controls = measure_reference_controls(model, shared.topic, shared.baseline, shared.ctx)
        result = together([relabelled(before, REFERENCE), relabelled(after, REFERENCE_BENIGN), controls])
        return result.model_copy(update={"provenance": {**result.provenance, "benign_stages": stages}})

    if not shared.references:
        run = shared.run
        shared.references.append(run.cached("reference", Measurements, measure) if run is not None else measure())
    return shared.references[0]


def _stages(steps: int) -> list[Stage]:
    return [(factor * steps, rate, what) for factor, rate, what in STAGES]


def benign_stages(shared: StudyContext, reference: Measurements | None) -> list[Stage]:
    """As many as the reference needed; the first alone where there is none."""
    made = reference.provenance["benign_stages"] if reference is not None else _stages(shared.design.worn_for)[:1]
    return [(steps, rate, what) for steps, rate, what in made]


def measure_after_benign(
    shared: StudyContext, changed: LanguageModel, own: Run, reference: Measurements | None
) -> Measurements | None:
    """The shift after benign training on top; None where none is wanted, or there are no weights to train.

    reference  that of the study, whose stages of training are repeated; None: the first stage alone
    """
    if not shared.design.worn_for or _weights_of(changed) is None:
        return None

    def measure() -> Measurements:
        shared.ctx.log("benign training on top, for durability")
        return _shift(shared, benign_finetune(shared, changed, benign_stages(shared, reference)))

    return own.cached("after_benign", Measurements, measure)


def measure_reversal(
    shared: StudyContext, changed: LanguageModel, own: Run, after: Measurements
) -> Measurements | None:
    """The shift after doses of the other side's documents, until half of it is gone or the last dose was given.

    None where the weights are the untouched model's, no training is wanted, or the other side has no text.
    """
    texts = other_side(shared.topic)
    if not shared.design.worn_for or not has_own_weights(shared, changed) or not texts:
        return None

    def measure() -> Measurements:
        shared.ctx.log("training on the other side's documents, for the reversal curve")
        data, model, dose, curve = TrainingData("the other side", documents=texts), changed, 0, list[Measurements]()
        for stage, steps in enumerate(REVERSAL_STEPS):
            model, tokens = _with_weights(model, lambda w: _read_on(shared, w, data, steps, stage))  # noqa: B023
            dose += tokens
            measured = _shift(shared, model)
            curve.append(relabelled(measured, reversal_metric(dose)))
            if halved(shared.baseline, after, measured):
                break
        return together(curve)

    return own.cached("reversal", Measurements, measure)


def has_own_weights(shared: StudyContext, changed: LanguageModel) -> bool:
    """Whether there are weights to train that are not the untouched model's."""
    weights = _weights_of(changed)
    return weights is not None and weights.id != shared.model.id


def other_side(topic: Topic) -> tuple[Document, ...]:
    """The other side's documents; where the kit has none, the paragraphs of its context."""
    documents = tuple(Document(f"{topic.other}/{d.id}", d.text) for d in topic.documents_of(topic.other))
    context = topic.poles[topic.other].context
    return documents or tuple(Document(f"{topic.other}:{line}", text) for line, text in paragraphs(context))


def benign_finetune(shared: StudyContext, changed: LanguageModel, stages: Sequence[Stage]) -> LanguageModel:
    """After one stage of benign training after the other; a prompt stays before a model that was trained."""
    if isinstance(changed, PromptedModel):
        return replace(changed, inner=benign_finetune(shared, changed.inner, stages))
    if changed.id != shared.model.id:
        return _benign(shared, changed, stages)
    key = tuple(stages)  # arms that leave the weights alone share the model
    if key not in shared.after_benign:
        shared.after_benign[key] = _benign(shared, shared.model, stages)
    return shared.after_benign[key]


def _benign(shared: StudyContext, model: LanguageModel, stages: Sequence[Stage]) -> LanguageModel:
    text = TrainingData(
        "neutral text", documents=tuple(Document(f"neutral-{i}", t) for i, t in enumerate(neutral_text()))
    )
    facts = placebo_data(shared.topic, TrainingData.from_topic(shared.topic), documents=False)
    for steps, rate, what in stages:
        if what == "facts" and facts is not None and facts.pairs:
            method: Sft | Pretrain = Sft(training=Training(learning_rate=rate, epochs=steps, max_steps=steps))
            data = replace(facts, held_out=(), topic=None)
        else:
            method, data = _pretrain(steps, 0, rate, schedule="linear"), text
        model = _sound(method.apply(model, data, _quiet(shared))).changed
    return model


def _read_on(
    shared: StudyContext, model: LanguageModel, data: TrainingData, steps: int, stage: int
) -> tuple[LanguageModel, int]:
    """The model after so many steps on these texts, and the tokens that they had."""
    outcome = _sound(_pretrain(steps, stage, RATE, schedule="constant").apply(model, data, _quiet(shared)))
    return outcome.changed, outcome.training.tokens if outcome.training is not None else steps * PIECES * TOKENS


def _pretrain(steps: int, seed: int, rate: float, *, schedule: Literal["constant", "linear"]) -> Pretrain:
    """So many steps, however few the documents. A constant rate goes on from stage to stage without warm-up."""
    training = Training(
        learning_rate=rate,
        epochs=steps,
        max_steps=steps,
        batch_size=PIECES,
        seed=seed,
        schedule=schedule,
        warmup=0.0 if schedule == "constant" else 0.1,
    )
    return Pretrain(piece_tokens=TOKENS, training=training)


def _sound(outcome: Outcome) -> Outcome:
    """Raises ModelError where the guard had to stop: a model that broke tells nothing of durability."""
    if outcome.guard_stop is not None:
        reasons = "; ".join(outcome.guard_stop.reasons)
        raise ModelError(f"benign training broke: {reasons}", hint="load it with --dtype fp32")
    return outcome


def _quiet(shared: StudyContext) -> RunContext:
    return replace(shared.ctx, run=None, guard=Guard(mode="none"))


def _shift(shared: StudyContext, model: LanguageModel) -> Measurements:
    return measure_depth(model, shared.topic, base=shared.baseline, kinds=["change"])


def _with_weights(
    model: LanguageModel, train: Callable[[LanguageModel], tuple[LanguageModel, int]]
) -> tuple[LanguageModel, int]:
    """Trains the weights under a prompt, if there is one, and puts it before them again."""
    if isinstance(model, PromptedModel):
        inner, tokens = _with_weights(model.inner, train)
        return replace(model, inner=inner), tokens
    return train(model)


def _weights_of(model: LanguageModel) -> LanguageModel | None:
    """What there is to train, maybe under a prompt; None: nothing."""
    if isinstance(model, PromptedModel):
        return _weights_of(model.inner)
    return model if isinstance(model, WeightModel) else None
