"""One arm: forecast → apply (guarded) → read again → judge. What goes wrong in it is its result, no more."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conviction.core.depth import Judgement, Readings
from conviction.core.judging import judge
from conviction.core.protocols import LanguageModel, WeightModel, chat
from conviction.core.run import Run
from conviction.core.settings import flat
from conviction.core.storage import storage_errors, write_atomic
from conviction.core.study import Applying, Arm, Failure
from conviction.core.topic import Topic
from conviction.errors import ConvictionError, InputError
from conviction.study.controls import TRAINED, has_weights, placebo_material, wear
from conviction.study.made import Made
from conviction.study.setup import Notes, Setup, check_same, once

if TYPE_CHECKING:
    from conviction.core.forecast import ForecastScore
    from conviction.core.material import Material
    from conviction.intervene.assemble import Plan

__all__ = ["describe_plan", "judge_made", "run_arm"]

FORESEEN = ("dpo", "sft")  # arms whose training a forecast foresees flips of
# A kit's training split makes a short run, which a forecast at full length would take longer than.
PILOT_STEPS, EXAMPLES = 5, 16


def describe_plan(plan: Plan, *, left_out: str | None = None) -> Arm:
    """An arm before anything was done."""
    name = plan.intervention.name
    return Arm(
        name=name,
        folder=f"arms/{name}",
        changes=plan.intervention.changes,
        settings=flat(plan.intervention),
        left_out=left_out,
    )


def run_arm(plan: Plan, setup: Setup, own: Run) -> Arm:
    """From forecast to judgement, in the arm's own folder."""

    def do(arm: Arm) -> Arm:
        material = plan.material()
        expected = _foresee(plan, setup, own, material)
        applying = _apply(plan, setup, own, material)

        def placebo() -> Readings | None:
            return _placebo(plan, setup, own, material, stopped=applying.trip is not None)

        return _measured(setup, own, own.folder, arm.model_copy(update={"applying": applying}), expected, placebo)

    return _guarded(describe_plan(plan), setup, own, do)


def judge_made(made: Made, setup: Setup, own: Run, *, name: str, folder: str, made_in: str) -> Arm:
    """An arm out of a run that ``apply`` made by itself; its readings are written into ``own``.

    folder, made_in  its own folder and the run's, relative to the study's
    """
    from conviction.intervene import find_intervention

    arm = Arm(
        name=name,
        folder=folder,
        made_in=made_in,
        changes=str(find_intervention(made.intervention).changes),
        settings=dict(made.settings),
        applying=Applying(seconds=made.seconds, peak_mb=made.peak_mb, trip=_trip(made.trip)),
    )

    def do(arm: Arm) -> Arm:
        expected = Run(made.folder).thaw().verdict.kind if (made.folder / "forecast.json").exists() else None
        return _measured(setup, own, made.folder, arm, expected, lambda: None)

    return _guarded(arm, setup, own, do)


def _guarded(arm: Arm, setup: Setup, own: Run, do: Callable[[Arm], Arm]) -> Arm:
    try:
        return do(arm)
    except ConvictionError as error:
        failure = Failure(kind=type(error).__name__, message=str(error), hint=error.hint)
    except Exception as error:  # torch, the disk and the network fail in their own ways: the other arms go on
        own.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(own.folder / "failure.txt", traceback.format_exc())
        hint = f"the traceback is in {own.folder / 'failure.txt'}"
        failure = Failure(kind=type(error).__name__, message=str(error), hint=hint)
    setup.watch.say(f"{arm.name} failed: {failure.message}")
    return arm.model_copy(update={"failure": failure})


def _measured(
    setup: Setup, own: Run, made_in: Path, arm: Arm, expected: str | None, placebo: Callable[[], Readings | None]
) -> Arm:
    """The arm with its judgement. What only a shift can have is read where there is one; what is missing is noted."""
    from conviction.probe.depth import read_depth

    moved, notes = setup.load(str(made_in / "model")), Notes(setup.watch)
    after = once(
        own,
        "depth",
        Readings,
        lambda: read_depth(moved, setup.topic, base=setup.readings, progress=setup.watch.bars),  # type: ignore[arg-type]
    )
    check_same(setup.topic, after)
    judgement = judge(setup.readings, after)
    if _shifted(judgement):
        other = notes.beside("the placebo", placebo)
        if other is not None and other.provenance.get("trip"):
            notes.add(
                f"the placebo was stopped by the guard and corrects for less training: {other.provenance['trip']}"
            )
        judgement = judge(setup.readings, after, placebo=other)
        if _shifted(judgement):  # what a placebo does as well needs no wear to be none
            worn = notes.beside("durability", lambda: _worn(setup, own, moved))
            judgement = judge(setup.readings, after, placebo=other, worn=worn)
    score = (
        notes.beside("the forecast's score", lambda: _held_to(setup, own, made_in)) if expected is not None else None
    )
    return arm.model_copy(
        update={
            "tokens_more": _tokens_more(setup.base, moved, setup.topic),
            "judgement": judgement,
            "expected": expected,
            "score": score,
            "notes": tuple(notes.lines),
        }
    )


def _shifted(judgement: Judgement) -> bool:
    shift = judgement.find("shift")
    return shift is not None and shift.outcome == "yes"


def _worn(setup: Setup, own: Run, moved: LanguageModel) -> Readings | None:
    """The shift after benign training on top, of what has weights to train."""
    from conviction.probe.depth import read_shift

    if not setup.wear_steps or not has_weights(moved):
        return None

    def read() -> Readings:
        setup.watch.say("benign training on top, for durability")
        return read_shift(wear(setup, moved), setup.topic, implied=False)

    return once(own, "worn", Readings, read)


def _placebo(plan: Plan, setup: Setup, own: Run, material: Material, *, stopped: bool) -> Readings | None:
    """None where none is wanted. Raises InputError where there can be none."""
    from conviction.probe.depth import read_shift

    name = plan.intervention.name
    if not setup.placebo or not hasattr(plan.intervention, "task"):
        return None
    if name not in TRAINED:
        raise InputError(
            f"'{name}' begins with another model, and so would a placebo", hint="hold it against `pretrain`"
        )
    if stopped:
        raise InputError(
            "the guard stopped the arm itself, and a placebo would be trained for longer", hint="train more gently"
        )
    other = placebo_material(setup.topic, material, documents=name == "pretrain")
    if other is None:
        raise InputError(
            "the topic has nothing on another subject",
            hint="add facts of split train, for `pretrain` placebo documents",
        )

    def read() -> Readings:
        setup.watch.say(f"the placebo of {name}")
        moved = plan.intervention.apply(setup.base, other, guard=plan.guard, watch=setup.watch)
        found = read_shift(moved.model, setup.topic)
        return found.model_copy(update={"provenance": {**found.provenance, "trip": _trip(moved.trip)}})

    return once(own, "placebo", Readings, read)


def _foresee(plan: Plan, setup: Setup, own: Run, material: Material) -> str | None:
    """The verdict of the forecast, which is made and frozen before the first step."""
    if plan.intervention.name not in FORESEEN:
        return None
    if not (own.folder / "forecast.json").exists():
        from conviction.forecast import forecast

        asked = [question for question in plan.asked(None) if question.role == "target"]
        found = forecast(
            setup.base,
            material,
            plan.intervention,
            asked=asked,
            guard=plan.guard,
            pilot_steps=PILOT_STEPS,
            examples=EXAMPLES,
            watch=setup.watch,
        )
        own.freeze(found)
    return own.thaw().verdict.kind


def _apply(plan: Plan, setup: Setup, own: Run, material: Material) -> Applying:
    def do() -> Applying:
        import torch

        from conviction.train.record import peak_mb, reset_peak

        device = getattr(setup.base, "device", torch.device("cpu"))
        reset_peak(device)
        clock = time.perf_counter()
        moved = plan.intervention.apply(setup.base, material, guard=plan.guard, folder=own.folder, watch=setup.watch)
        outcome = getattr(moved, "outcome", None)  # a training run counts the time before it was cut off, too
        seconds = time.perf_counter() - clock if outcome is None else outcome.seconds
        return Applying(seconds=seconds, peak_mb=peak_mb(device), trip=_trip(moved.trip))

    return once(own, "applying", Applying, do)


def _trip(trip: Any) -> str | None:
    """Why the guard stopped, in words: its own, or those of a training run and its record."""
    if trip is None or isinstance(trip, str):
        return trip
    found = trip if isinstance(trip, dict) else vars(trip)
    return f"step {found['step']}: {'; '.join(found['reasons'])}"


def _held_to(setup: Setup, own: Run, made_in: Path) -> ForecastScore:
    from conviction.compare import compare_run
    from conviction.core.forecast import ForecastScore

    base, path = setup.base, own.folder / "comparison.json"
    if not path.exists():
        compare_run(made_in, lambda name: base if name == base.id else setup.load(name), base=base.id, into=own.folder)
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
    encoder = getattr(model, "encoder", None) if isinstance(model, WeightModel) else None
    return len(encoder.encode_prompt(messages)) if encoder is not None else 0
