"""The whole way: probe → audit → for each arm: forecast → apply (guarded) → read again → judge. Read this file first.

Every step writes its result into the run folder and is skipped where it lies
there already, so that a study that was cut off goes on where it was. An arm's
model is always loaded from its folder before it is read: a study that went
through in one go and one that was taken up again read the same thing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from conviction.core.depth import Readings
from conviction.core.material import material_from_topic
from conviction.core.protocols import LanguageModel
from conviction.core.run import Run
from conviction.core.scorecard import Scorecard
from conviction.core.settings import flat
from conviction.core.storage import write_atomic
from conviction.core.study import Arm, Study
from conviction.core.topic import Topic
from conviction.errors import InputError
from conviction.study.arm import describe_plan, judge_made, run_arm
from conviction.study.controls import placebo_material
from conviction.study.made import Made, check_base, read_made
from conviction.study.setup import Load, Setup, alone, check_same, hold_to, once

if TYPE_CHECKING:
    from conviction.intervene.assemble import Plan
    from conviction.train.loop import Watch

__all__ = ["CHEAPEST_FIRST", "Design", "compare", "plan_arms", "read_made", "study"]

CHEAPEST_FIRST = ("system_prompt", "rag", "memit", "rome", "steer", "sft", "dpo", "pretrain", "scratch")


@dataclass(frozen=True, kw_only=True)
class Design:
    """What is to be compared.

    plans       one for each arm, in the order they are run
    budget_s    no arm is begun after so many seconds; None: all are
    wear_steps  benign training steps after which durability is read; 0: it is not
    placebo     train each trained arm once more on texts of another subject, to take that shift off
    """

    topic: Topic
    model: str
    plans: tuple[Plan, ...] = ()
    budget_s: float | None = None
    wear_steps: int = 10
    placebo: bool = True


def plan_arms(names: Sequence[str], topic: str, model: str, options: Sequence[str], guard: str) -> tuple[Plan, ...]:
    """Arms by name, cheapest first. options: ``ARM.FIELD=VALUE``.

    Raises InputError for an unknown arm or field, or an option of an arm that is not in the study.
    """
    from conviction.intervene import find_intervention
    from conviction.intervene.assemble import assemble

    if not names:
        raise InputError("a study needs an arm", hint=f"--interventions {','.join(CHEAPEST_FIRST[:3])}")
    for name in names:
        find_intervention(name)
    chosen = sorted(dict.fromkeys(names), key=CHEAPEST_FIRST.index)
    given: dict[str, list[str]] = {name: [] for name in chosen}
    for option in options:
        arm, dot, field = option.partition(".")
        if not dot or arm not in given:
            raise InputError(
                f"the option '{option}' names no arm of this study",
                hint=f"write ARM.FIELD=VALUE, for example {chosen[0]}.FIELD=…; arms: {', '.join(chosen)}",
            )
        given[arm].append(field)
    return tuple(
        assemble(name, topic=topic, data=None, model=model, options=given[name], config=None, preset=None, guard=guard)
        for name in chosen
    )


def study(design: Design, run: Run, load: Load, watch: Watch) -> Study:
    """Measure every arm of the design. What is in the run folder already is not done again.

    Raises RunError if another study writes into the folder, or one with another design did.
    """
    begun = time.perf_counter()
    if not design.plans:
        raise InputError("a study needs an arm", hint="give the design plans, from plan_arms")
    with alone(run.folder):
        setup, before = _untouched(design, run, load, watch)
        _audit(run, design.topic)
        arms: list[Arm] = []
        for plan in design.plans:
            name, spent = plan.intervention.name, time.perf_counter() - begun
            watch.say(f"arm {len(arms) + 1} of {len(design.plans)}: {name} ({spent:.0f} s so far)")
            late = design.budget_s is not None and spent >= design.budget_s
            if late and not (run.folder / "arms" / name / "depth.json").exists():
                arms.append(
                    describe_plan(plan, left_out=f"the budget of {(design.budget_s or 0) / 60:g} minutes was spent")
                )
            else:
                arms.append(run_arm(plan, setup, Run(run.folder / "arms" / name, resumed=True)))
            found = _write(design, run, setup, before, arms)
    return found


def compare(made: Sequence[Made], design: Design, run: Run, load: Load, watch: Watch) -> Study:
    """The table of a study from runs that ``apply`` made apart; they stay as they are.

    Raises RunError for a run on another model than the design's.
    """
    with alone(run.folder):
        setup, before = _untouched(design, run, load, watch, [f"{one.folder.resolve()} {one.digest}" for one in made])
        arms = []
        for number, one in enumerate(made):
            check_base(one, setup.base)
            if one.topic != design.topic.name:
                watch.say(f"note: {one.folder} learned from {one.topic}, and is asked about {design.topic.name}")
            same = [other.folder for other in made if other.intervention == one.intervention]
            name = one.intervention if len(same) == 1 else f"{one.intervention} {same.index(one.folder) + 1}"
            folder = f"arms/{number + 1}-{one.intervention}"
            made_in = os.path.relpath(one.folder.resolve(), run.folder.resolve())
            own = Run(run.folder / folder, resumed=True)
            arms.append(judge_made(one, setup, own, name=name, folder=folder, made_in=made_in))
        return _write(design, run, setup, before, arms)


def _untouched(design: Design, run: Run, load: Load, watch: Watch, made: Sequence[str] = ()) -> tuple[Setup, Scorecard]:
    """The model before anything is done: probed, and read as the arms will be."""
    topic, base = design.topic, load(design.model)
    described, material = base.describe(), material_from_topic(topic)
    on_another = placebo_material(topic, material, documents=True)
    hold_to(
        run,
        {
            "model": {name: described.get(name) for name in ("id", "fingerprint", "dtype")},
            "target": topic.target,
            "material": [material.digest, on_another and on_another.digest],
            "arms": {p.intervention.name: [flat(p.intervention), flat(p.guard)] for p in design.plans},
            "made": list(made),
            "wear_steps": design.wear_steps,
            "placebo": design.placebo,
        },
    )
    before = once(run, "before", Scorecard, lambda: _probe(base, topic, watch))
    readings = once(run, "depth", Readings, lambda: _read(base, topic, watch))
    check_same(topic, before, readings)
    setup = Setup(
        topic=topic,
        base=base,
        readings=readings,
        load=load,
        watch=watch,
        wear_steps=design.wear_steps,
        placebo=design.placebo,
    )
    return setup, before


def _write(design: Design, run: Run, setup: Setup, before: Scorecard, arms: Sequence[Arm]) -> Study:
    found = Study(
        model=setup.base.id,
        topic=design.topic.name,
        target=design.topic.target,
        other=design.topic.other,
        verdict=before.summary.verdict,
        arms=tuple(arms),
        provenance={
            "conviction": version("conviction"),
            "topic_sha256": design.topic.digest,
            "wear_steps": design.wear_steps,
            "placebo": design.placebo,
            "model": setup.base.describe(),
        },
    )
    write_atomic(run.folder / "study.json", found.model_dump_json(indent=1) + "\n")
    return found


def _probe(base: LanguageModel, topic: Topic, watch: Watch) -> Scorecard:
    from conviction.probe import probe

    return probe(base, topic, progress=watch.bars)  # type: ignore[arg-type]


def _read(base: LanguageModel, topic: Topic, watch: Watch) -> Readings:
    from conviction.probe.depth import read_depth

    return read_depth(base, topic, progress=watch.bars)  # type: ignore[arg-type]


def _audit(run: Run, topic: Topic) -> None:
    """What the linter says of the pairs that the arms learn from."""
    from conviction.audit import audit

    path, material = run.folder / "findings.json", material_from_topic(topic)
    if material.pairs and not path.exists():
        found = audit(material, topic=topic)
        write_atomic(path, found.model_dump_json(indent=1) + "\n")
