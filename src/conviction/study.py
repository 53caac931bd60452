"""The whole way: probe → audit → for each arm: forecast → apply (guarded) → probe again → judge. Read this file first.

Every step writes its result into the run folder and is skipped where it lies
there already, so that a study that was cut off goes on where it was. An arm's
model is always loaded from its folder before it is read: a study that went
through in one go and one that was taken up again read the same thing.
"""

from __future__ import annotations

import dataclasses
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from conviction.core.depth import Readings
from conviction.core.judging import judge
from conviction.core.protocols import LanguageModel, WeightModel, chat
from conviction.core.run import Run
from conviction.core.scorecard import Scorecard
from conviction.core.settings import flat
from conviction.core.storage import storage_errors, write_atomic
from conviction.core.study import Applying, Arm, Failure, Study
from conviction.core.topic import PLACEBO, Topic
from conviction.errors import ConvictionError, InputError, RunError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conviction.core.forecast import ForecastScore
    from conviction.core.material import Material
    from conviction.intervene.assemble import Plan
    from conviction.train.loop import Watch

__all__ = ["CHEAPEST_FIRST", "Design", "plan_arms", "study"]

CHEAPEST_FIRST = ("system_prompt", "rag", "memit", "rome", "steer", "sft", "dpo", "pretrain", "scratch")
FORESEEN = ("dpo", "sft")  # arms whose training a forecast foresees flips of
TRAINED = ("dpo", "sft", "pretrain")  # arms that a placebo is trained for

Load = Callable[[str], LanguageModel]
Found = TypeVar("Found", bound=BaseModel)
Measured = TypeVar("Measured")


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
    plans: tuple[Plan, ...]
    budget_s: float | None = None
    wear_steps: int = 20
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

    Raises RunError if another study writes into the folder.
    """
    begun = time.perf_counter()
    with _alone(run.folder):
        topic = design.topic
        base = load(design.model)
        before = _once(run, "before", Scorecard, lambda: _probe(base, topic, watch))
        readings = _once(run, "depth", Readings, lambda: _read(base, topic, None, watch))
        _check_same(topic, before.provenance, readings.provenance)
        _audit(run, topic)
        arms: list[Arm] = []
        for plan in design.plans:
            spent = time.perf_counter() - begun
            watch.say(f"arm {len(arms) + 1} of {len(design.plans)}: {plan.intervention.name} ({spent:.0f} s so far)")
            late = design.budget_s is not None and spent >= design.budget_s
            if late and not (run.folder / "arms" / plan.intervention.name / "depth.json").exists():
                arms.append(
                    _described(plan, left_out=f"the budget of {(design.budget_s or 0) / 60:g} minutes was spent")
                )
            else:
                arms.append(_arm(plan, design, run, base, readings, load, watch))
            found = Study(
                model=base.id,
                topic=topic.name,
                target=topic.target,
                other=topic.other,
                verdict=before.summary.verdict,
                arms=tuple(arms),
                provenance={
                    "conviction": version("conviction"),
                    "topic_sha256": topic.digest,
                    "wear_steps": design.wear_steps,
                    "placebo": design.placebo,
                    "model": base.describe(),
                },
            )
            write_atomic(run.folder / "study.json", found.model_dump_json(indent=1) + "\n")
    return found


def _arm(
    plan: Plan, design: Design, run: Run, base: LanguageModel, readings: Readings, load: Load, watch: Watch
) -> Arm:
    """One arm from forecast to judgement. What goes wrong in it is its result, not the study's end."""
    own = Run(run.folder / "arms" / plan.intervention.name, resumed=True)
    described = _described(plan)
    try:
        material = plan.material()
        expected = _foresee(plan, own, base, material, watch)
        applying = _apply(plan, own, base, material, watch)
        moved = load(str(own.folder / "model"))
        after = _once(own, "depth", Readings, lambda: _read(moved, design.topic, readings, watch))
        _check_same(design.topic, after.provenance)
        worn = _beside(watch, "durability", lambda: _worn(design, own, moved, watch))
        placebo = None
        if applying.trip is None:
            placebo = _beside(watch, "the placebo", lambda: _placebo(plan, design, own, base, material, watch))
        score = _beside(watch, "the forecast's score", lambda: _held_to(own, base, load)) if expected else None
        return described.model_copy(
            update={
                "applying": applying,
                "tokens_more": _tokens_more(base, moved, design.topic),
                "judgement": judge(readings, after, placebo=placebo, worn=worn),
                "expected": expected,
                "score": score,
            }
        )
    except ConvictionError as error:
        watch.say(f"{plan.intervention.name} failed: {error}")
        return described.model_copy(
            update={"failure": Failure(kind=type(error).__name__, message=str(error), hint=error.hint)}
        )
    except Exception as error:  # torch, the disk and the network fail in their own ways: the other arms go on
        own.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(own.folder / "failure.txt", traceback.format_exc())
        watch.say(f"{plan.intervention.name} failed: {error}")
        hint = f"the traceback is in {own.folder / 'failure.txt'}"
        return described.model_copy(
            update={"failure": Failure(kind=type(error).__name__, message=str(error), hint=hint)}
        )


def _beside(watch: Watch, what: str, measure: Callable[[], Measured]) -> Measured | None:
    """What is measured beside an arm's own result, and may fail without taking that along."""
    try:
        return measure()
    except ConvictionError as error:
        watch.say(f"{what} could not be measured: {error}")
        return None


def _check_same(topic: Topic, *provenances: dict[str, Any]) -> None:
    """Raise RunError for results that were measured with other questions."""
    if any(p.get("topic_sha256") != topic.digest for p in provenances):
        raise RunError(
            f"the topic '{topic.name}' has changed since this study began", hint="give --run a new folder, or undo that"
        )


def _described(plan: Plan, *, left_out: str | None = None) -> Arm:
    name = plan.intervention.name
    return Arm(
        name=name,
        folder=f"arms/{name}",
        changes=plan.intervention.changes,
        settings=flat(plan.intervention),
        left_out=left_out,
    )


def _probe(base: LanguageModel, topic: Topic, watch: Watch) -> Scorecard:
    from conviction.probe import probe

    return probe(base, topic, health=True, progress=watch.bars)  # type: ignore[arg-type]


def _read(model: LanguageModel, topic: Topic, base: Readings | None, watch: Watch) -> Readings:
    from conviction.probe.depth import read_depth

    return read_depth(model, topic, base=base, progress=watch.bars)  # type: ignore[arg-type]


def _audit(run: Run, topic: Topic) -> None:
    """What the linter says of the pairs that the arms learn from."""
    from conviction.audit import audit
    from conviction.core.material import material_from_topic

    path, material = run.folder / "findings.json", material_from_topic(topic)
    if material.pairs and not path.exists():
        found = audit(material, topic=topic)
        write_atomic(path, found.model_dump_json(indent=1) + "\n")


def _foresee(plan: Plan, own: Run, base: LanguageModel, material: Material, watch: Watch) -> str | None:
    """The verdict of the forecast, which is made and frozen before the first step."""
    if plan.intervention.name not in FORESEEN:
        return None
    if not (own.folder / "forecast.json").exists():
        from conviction.forecast import forecast

        own.freeze(forecast(base, material, plan.intervention, asked=plan.asked(None), guard=plan.guard, watch=watch))
    return own.thaw().verdict.kind


def _apply(plan: Plan, own: Run, base: LanguageModel, material: Material, watch: Watch) -> Applying:
    def do() -> Applying:
        import torch

        from conviction.train.record import peak_mb

        clock = time.perf_counter()
        moved = plan.intervention.apply(base, material, guard=plan.guard, folder=own.folder, watch=watch)
        outcome = getattr(moved, "outcome", None)  # a training run counts the time before it was cut off, too
        seconds = time.perf_counter() - clock if outcome is None else outcome.seconds
        trip = moved.trip
        if trip is not None and not isinstance(trip, str):
            trip = f"step {trip.step}: {'; '.join(trip.reasons)}"
        return Applying(seconds=seconds, peak_mb=peak_mb(getattr(base, "device", torch.device("cpu"))), trip=trip)

    return _once(own, "applying", Applying, do)


def _worn(design: Design, own: Run, moved: LanguageModel, watch: Watch) -> Readings | None:
    """The shift after benign training on top, of what has weights to train."""
    if not design.wear_steps or not _trainable(moved):
        return None
    return _once(own, "worn", Readings, lambda: _read_shift(_wear(moved, design.wear_steps, watch), design.topic))


def _trainable(model: LanguageModel) -> bool:
    from conviction.models.prompted import Prompted

    return _trainable(model.inner) if isinstance(model, Prompted) else isinstance(model, WeightModel)


def _wear(moved: LanguageModel, steps: int, watch: Watch) -> LanguageModel:
    """Trained for some steps on the bundled neutral text; a prompt stays before a model that was."""
    from conviction.core.material import Document, Material
    from conviction.intervene.pretrain import Pretrain
    from conviction.models.prompted import Prompted
    from conviction.probe.health import neutral_text
    from conviction.train.guard import Guard
    from conviction.train.settings import Training

    if isinstance(moved, Prompted):
        return replace(moved, inner=_wear(moved.inner, steps, watch))
    benign = Material(
        "neutral text", documents=tuple(Document(f"neutral-{i}", t) for i, t in enumerate(neutral_text()))
    )
    plain = Pretrain(piece_tokens=256, training=Training(learning_rate=1e-4, max_steps=steps))
    return plain.apply(moved, benign, guard=Guard(mode="off"), watch=watch).model


def _read_shift(model: LanguageModel, topic: Topic) -> Readings:
    from conviction.probe.depth import read_shift

    return read_shift(model, topic)


def _placebo(
    plan: Plan, design: Design, own: Run, base: LanguageModel, material: Material, watch: Watch
) -> Readings | None:
    """The same training on another subject: the topic's placebo texts, and facts that no side disputes."""
    if not design.placebo or plan.intervention.name not in TRAINED:
        return None
    other = placebo_material(design.topic, material, documents=plan.intervention.name == "pretrain")
    if other is None:
        watch.say(f"{plan.intervention.name} has no placebo: the topic has nothing on another subject")
        return None

    def do() -> Readings:
        watch.say(f"the placebo of {plan.intervention.name}")
        return _read_shift(plan.intervention.apply(base, other, guard=plan.guard, watch=watch).model, design.topic)

    return _once(own, "placebo", Readings, do)


def placebo_material(topic: Topic, material: Material, *, documents: bool) -> Material | None:
    """As many pairs as the material holds, and documents, on another subject; None where the topic has none.

    documents  whether it is these that count, not the pairs
    """
    from conviction.core.material import Document, Pair

    facts = [i for i in topic.of_role("neighbour", "control") if i.split == "train"]
    texts = topic.documents_of(PLACEBO)
    if not (texts if documents else facts):
        return None
    turns = [facts[i % len(facts)] for i in range(len(material.pairs))] if facts else []
    return dataclasses.replace(
        material,
        name=f"{material.name}-placebo",
        pairs=tuple(
            Pair(f"placebo-{i}", chat(f.question), f.answers["true"], f.answers["false"]) for i, f in enumerate(turns)
        ),
        documents=tuple(Document(d.id, d.text) for d in texts),
        facts=(),
        context="",
    )


def _held_to(own: Run, base: LanguageModel, load: Load) -> ForecastScore:
    from conviction.compare import compare_run
    from conviction.core.forecast import ForecastScore

    path = own.folder / "comparison.json"
    if not path.exists():
        compare_run(own.folder, lambda name: base if name == base.id else load(name), base=base.id)
    with storage_errors(f"reading {path}"):
        return ForecastScore.model_validate_json(path.read_text(encoding="utf-8"))


def _tokens_more(base: LanguageModel, moved: LanguageModel, topic: Topic) -> float:
    """Mean tokens that stand before an answer, less those that the untouched model reads."""
    questions = [chat(item.question) for item in topic.of_role("target") if item.split == "test"]
    counts = [[_prompt_tokens(model, q) for q in questions] for model in (moved, base)]
    return sum(map(sum, zip(counts[0], (-c for c in counts[1]), strict=True))) / len(questions)


def _prompt_tokens(model: LanguageModel, messages: Any) -> int:
    from conviction.models.prompted import Prompted

    while isinstance(model, Prompted):
        (messages,) = model.rewriter.rewrite([messages])
        model = model.inner
    encoder = getattr(model, "encoder", None)
    return len(encoder.encode_prompt(messages)) if encoder is not None else 0


def _once(run: Run, stage: str, kind: type[Found], make: Callable[[], Found]) -> Found:
    """The result of a step: read back if it is there, else made and kept."""
    if (run.folder / f"{stage}.json").exists():
        return run.load(stage, kind)
    return run.save(stage, make())


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise RunError(
            f"another study writes into {folder}", hint="wait for it, or give --run another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()
