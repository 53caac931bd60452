"""Benign training on top of a change: what of the change is left shows how durable it is."""

from __future__ import annotations

from dataclasses import replace

from conviction.core.protocols import LanguageModel, WeightModel
from conviction.core.run import Run
from conviction.data.training_data import Document, TrainingData
from conviction.errors import ModelError
from conviction.interventions.pretrain import Pretrain
from conviction.models.prompted import PromptedModel
from conviction.probing.depth import measure_depth
from conviction.probing.depth_records import Measurements
from conviction.probing.health import neutral_text
from conviction.studies.context import StudyContext
from conviction.training.guard import Guard
from conviction.training.settings import Training

TOKENS, PIECES = 128, 2  # of benign text in a piece, and pieces in a step


def measure_after_benign(shared: StudyContext, changed: LanguageModel, own: Run) -> Measurements | None:
    """The shift after benign training on top; None where none is wanted, or there are no weights to train."""
    if not shared.design.benign_steps or not _has_weights(changed):
        return None

    def measure() -> Measurements:
        shared.ctx.log("benign training on top, for durability")
        trained = benign_finetune(shared, changed)
        return measure_depth(trained, shared.topic, base=shared.baseline, kinds=["change"])

    return own.cached("after_benign", Measurements, measure)


def benign_finetune(shared: StudyContext, changed: LanguageModel) -> LanguageModel:
    """Trained for some steps on the bundled neutral text; a prompt stays before a model that was."""
    if isinstance(changed, PromptedModel):
        return replace(changed, inner=benign_finetune(shared, changed.inner))
    if changed.id == shared.model.id:
        if changed.id not in shared.after_benign:
            shared.after_benign[changed.id] = _trained(shared, shared.model)
        return shared.after_benign[changed.id]
    return _trained(shared, changed)


def _trained(shared: StudyContext, model: LanguageModel) -> LanguageModel:
    benign = TrainingData(
        "neutral text", documents=tuple(Document(f"neutral-{i}", t) for i, t in enumerate(neutral_text()))
    )
    training = Training(learning_rate=1e-4, max_steps=shared.design.benign_steps, batch_size=PIECES)
    ctx = replace(shared.ctx, run=None, guard=Guard(mode="none"))
    outcome = Pretrain(piece_tokens=TOKENS, training=training).apply(model, benign, ctx)
    if outcome.guard_stop is not None:
        reasons = "; ".join(outcome.guard_stop.reasons)
        raise ModelError(f"benign training broke: {reasons}", hint="load it with --dtype fp32")
    return outcome.changed


def _has_weights(model: LanguageModel) -> bool:
    """Whether there is something to train, maybe under a prompt."""
    return _has_weights(model.inner) if isinstance(model, PromptedModel) else isinstance(model, WeightModel)
