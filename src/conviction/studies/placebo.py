"""The same training on another subject: its shift is no effect of what an arm was to teach."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from conviction.config.plan import Plan
from conviction.core.options import build
from conviction.core.protocols import chat
from conviction.core.run import Run
from conviction.data.topic import PLACEBO, Topic
from conviction.data.training_data import Document, PreferencePair, TrainingData
from conviction.errors import InputError
from conviction.interventions.records import Outcome
from conviction.probing.depth import measure_depth
from conviction.probing.depth_records import Measurements
from conviction.probing.health import neutral_text

if TYPE_CHECKING:
    from conviction.studies.context import StudyContext


def measure_placebo(
    plan: Plan, outcome: Outcome, data: TrainingData, shared: StudyContext, own: Run
) -> Measurements | None:
    """The shift after the arm's own training on another subject; None where none is wanted.

    Raises InputError where there can be none.
    """
    intervention = plan.intervention
    if not shared.design.placebo or not intervention.trains:
        return None
    if intervention.placebo is None:
        raise InputError(
            f"'{intervention.name}' begins with another model, and so would a placebo",
            hint="compare it with `pretrain`",
        )
    if outcome.guard_stop is not None:
        raise InputError(
            "the guard stopped the arm itself, and a placebo would be trained for longer", hint="train more gently"
        )
    other = placebo_data(shared.topic, data, documents=intervention.placebo == "documents")
    if other is None:
        raise InputError(
            "the topic has nothing on another subject",
            hint="add facts of split train, for `pretrain` placebo documents",
        )
    if intervention.placebo == "context":
        other = replace(other, context=_other_context(shared.topic, str(outcome.settings["context"])))
        intervention = build(intervention, {"text": None, "file": None})  # which would be read in its place

    def measure() -> Measurements:
        shared.ctx.log(f"the placebo of {intervention.name}")
        trained = intervention.apply(shared.model, other, replace(shared.ctx, run=None, guard=plan.guard))
        result = measure_depth(trained.changed, shared.topic, base=shared.baseline, kinds=["change", "propagation"])
        stop = trained.guard_stop.text if trained.guard_stop else None
        return result.model_copy(update={"provenance": {**result.provenance, "guard_stop": stop}})

    return own.cached("placebo", Measurements, measure)


def placebo_data(topic: Topic, data: TrainingData, *, documents: bool) -> TrainingData | None:
    """As many pairs as the data holds, and documents, on another subject; None where the topic has none.

    documents  whether it is these that count, not the pairs
    """
    facts = [i for i in topic.of_role("neighbour", "control") if i.split == "train"]
    texts = topic.documents_of(PLACEBO)
    if not (texts if documents else facts):
        return None
    turns = [facts[i % len(facts)] for i in range(len(data.pairs))] if facts else []
    return replace(
        data,
        name=f"{data.name}-placebo",
        pairs=tuple(
            PreferencePair(f"placebo-{i}", chat(f.question), f.answers["true"], f.answers["false"])
            for i, f in enumerate(turns)
        ),
        documents=tuple(Document(d.id, d.text) for d in texts),
        facts=(),
        context="",
    )


def _other_context(topic: Topic, context: str) -> str:
    """A text as long as the context, on another subject: the topic's placebo documents, else neutral text."""
    texts = [document.text for document in topic.documents_of(PLACEBO)] or neutral_text()
    return " ".join(" ".join(texts).split()[: len(context.split())])
