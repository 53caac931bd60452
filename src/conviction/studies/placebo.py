"""The same training on another subject: its shift is no effect of what an arm was to teach."""

from __future__ import annotations

from dataclasses import replace

from conviction.config.plan import Plan
from conviction.core.run import Run
from conviction.data.training_data import TrainingData
from conviction.errors import InputError
from conviction.interventions.records import Outcome
from conviction.probing.depth import measure_depth
from conviction.probing.depth_records import Measurements
from conviction.studies.context import StudyContext
from conviction.studies.placebo_data import placebo_data

__all__ = ["measure_placebo"]


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

    def measure() -> Measurements:
        shared.ctx.log(f"the placebo of {intervention.name}")
        trained = intervention.apply(shared.model, other, replace(shared.ctx, run=None, guard=plan.guard))
        result = measure_depth(trained.changed, shared.topic, base=shared.baseline, kinds=["change", "propagation"])
        stop = trained.guard_stop.text if trained.guard_stop else None
        return result.model_copy(update={"provenance": {**result.provenance, "guard_stop": stop}})

    return own.cached("placebo", Measurements, measure)
