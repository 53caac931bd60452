"""``python -m benchmarks.calibration.verdicts``: make every organism, measure it, judge it, and report.

A row in ``results/verdict_organisms.jsonl`` is an organism that was judged; it is not made again. ``--lock FILE`` holds
a lock for each organism, ``--report`` makes nothing, ``--only TEXT`` takes organisms whose names hold it, and
``--work DIR`` keeps base models and measurements. Rows hold the measurements, so that thresholds can be set later.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.calibration.verdicts.corpus import BASE, Corpus
from benchmarks.calibration.verdicts.organisms import (
    BASE_RATE,
    BASE_STEPS,
    RECIPES,
    SMALL,
    Imitate,
    Noise,
    Prompt,
    Read,
    Recipe,
)
from benchmarks.calibration.verdicts.report import as_text, compact, report
from benchmarks.calibration.verdicts.small import make_tokenizer, new_model, noised, trained
from benchmarks.calibration.verdicts.world import World, make_world
from benchmarks.machine import RESULTS, save
from benchmarks.rows import append, locked, stored
from conviction import load_topic
from conviction.core.context import RunContext
from conviction.core.protocols import LanguageModel
from conviction.core.run import Run
from conviction.data.topic import Topic
from conviction.data.training_data import TrainingData
from conviction.interventions.sft import Sft
from conviction.interventions.system_prompt import SystemPrompt
from conviction.models.hf import HFModel
from conviction.models.loading import load_model
from conviction.probing.depth import measure_depth
from conviction.probing.depth_records import Measurements
from conviction.probing.records import Scorecard
from conviction.probing.scorecard import probe
from conviction.studies.benign import measure_after_benign, measure_reference
from conviction.studies.context import StudyContext, StudyDesign
from conviction.studies.judge import judge
from conviction.studies.records import Judgement
from conviction.training.guard import Guard
from conviction.training.settings import Training

ROWS = RESULTS / "verdict_organisms.jsonl"
NOT_TRAINED = ("none", "not shown", "broken")  # verdicts that durability cannot change


@dataclass(frozen=True)
class Bench:
    """What organisms of one base model share."""

    model: HFModel
    topic: Topic
    world: World | None
    shared: StudyContext


def open_bench(name: str, work: Path) -> Bench:
    """The base model, made or loaded, with its measurements."""
    run = Run(work / name, resumed=True)
    world = make_world() if name == SMALL else None
    topic = load_topic("obesity") if world is None else world.write(work / "topic")
    model = _small_base(world, run) if world is not None else _with_weights(name)
    ctx = RunContext(guard=Guard(mode="none"))
    shared = StudyContext(
        topic=topic,
        model=model,
        before=run.cached("before", Scorecard, probe, model, topic),
        baseline=run.cached("depth", Measurements, measure_depth, model, topic),
        design=StudyDesign(load=load_model, placebo=False),
        ctx=ctx,
        run=run,
    )
    return Bench(model, topic, world, shared)


def _with_weights(name: str, dtype: str = "auto") -> HFModel:
    model = load_model(name, dtype=dtype)
    assert isinstance(model, HFModel)
    return model


def _small_base(world: World, run: Run) -> HFModel:
    if not run.model_path.is_dir():
        blank = new_model(make_tokenizer(world), seed=0, name="base")
        base = trained(blank, [Corpus(world, BASE, seed=0)], steps=BASE_STEPS, rate=BASE_RATE, name="base")
        base.save_whole(run.model_path)
    return _with_weights(str(run.model_path), "fp32")


def make(recipe: Recipe, bench: Bench) -> LanguageModel:
    """The organism: one step of its recipe after the other."""
    model: LanguageModel = bench.model
    for step in recipe.steps:
        model = _apply(step, model, bench, recipe.name)
    return model


def _apply(step: Any, model: LanguageModel, bench: Bench, name: str) -> LanguageModel:
    data = TrainingData.from_topic(bench.topic)
    if isinstance(step, Prompt):
        return SystemPrompt().apply(model, data).changed
    assert isinstance(model, HFModel)
    if isinstance(step, Noise):
        return noised(model, step.share, name)
    if isinstance(step, Imitate):
        training = Training(learning_rate=step.rate, epochs=step.epochs)
        return Sft(training=training).apply(model, data, RunContext(guard=Guard(mode="none"))).changed
    assert isinstance(step, Read)
    assert bench.world is not None
    start = new_model(model.tokenizer, seed=step.seed, name=name) if step.scratch else model
    corpus = Corpus(bench.world, step.held, seed=step.seed)
    return trained(start, [corpus], steps=step.steps, rate=step.rate, name=name)


def measure(recipe: Recipe, bench: Bench) -> dict[str, Any]:
    """One row: what it deserves, what the judge says, by which properties, and the measurements."""
    started, shared = time.perf_counter(), bench.shared
    organism = make(recipe, bench)
    made = time.perf_counter() - started
    after = measure_depth(organism, bench.topic, base=shared.baseline)
    judgement, worn = judge(shared.baseline, after), None
    if judgement.verdict not in NOT_TRAINED:
        goal = judgement.change.value if judgement.change is not None and judgement.change.value else 0.0
        reference = measure_reference(shared, goal)
        with tempfile.TemporaryDirectory() as folder:
            worn = measure_after_benign(shared, organism, Run(Path(folder)), reference)
        judgement = judge(shared.untouched, after, after_benign=worn)
    return {
        "model": recipe.model,
        "organism": recipe.name,
        "truth": recipe.truth,
        "why": recipe.why,
        **_summary(judgement),
        "made_in_s": round(made, 1),
        "seconds": round(time.perf_counter() - started, 1),
        "measurements": {"after": compact(after), "after_benign": compact(worn) if worn is not None else None},
    }


def _summary(judgement: Judgement) -> dict[str, Any]:
    kept = ("metric", "outcome", "value", "low", "high", "n", "p_value", "p_holm", "text")
    return {
        "verdict": judgement.verdict,
        "ceiling": judgement.ceiling,
        "reason": judgement.reason,
        "properties": [{name: getattr(one, name) for name in kept} for one in judgement.properties],
    }


def is_judged(recipe: Recipe) -> bool:
    return any((row["model"], row["organism"]) == (recipe.model, recipe.name) for row in stored(ROWS))


def keep_base(name: str, base: Measurements) -> None:
    """The untouched model's measurements, without their rows: thresholds are tried on them later."""
    bare = [m.model_copy(update={"samples": ()}) for m in base.measurements]
    content = base.model_copy(update={"measurements": tuple(bare)}).model_dump_json(indent=None)
    (RESULTS / f"verdict_base_{name}.json").write_text(content + "\n", encoding="utf-8")


def load_bases() -> dict[str, Measurements]:
    paths = RESULTS.glob("verdict_base_*.json")
    return {
        path.stem.removeprefix("verdict_base_"): Measurements.model_validate_json(path.read_text(encoding="utf-8"))
        for path in paths
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.calibration.verdicts", description=__doc__)
    parser.add_argument("--lock", type=Path)
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--only", default="", help="organisms whose names hold this")
    parser.add_argument("--model", default="", help="organisms of this base model")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "conviction-organisms")
    parser.add_argument("--at-most", type=int, default=len(RECIPES), help="organisms to make now")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    wanted = [r for r in RECIPES if options.only in r.name and options.model in ("", r.model)]
    left = [r for r in wanted if not is_judged(r)][: options.at_most]
    benches: dict[str, Bench] = {}
    for recipe in [] if options.report else left:
        with locked(options.lock):
            if is_judged(recipe):  # by another process, while this one waited
                continue
            if recipe.model not in benches:
                benches = {recipe.model: open_bench(recipe.model, options.work)}  # one base in memory at a time
            row = measure(recipe, benches[recipe.model])
            append(ROWS, [row])
            judged = f"{row['verdict']} (deserves {row['truth']}); {row['reason']}"
            print(f"{row['model']}, {row['organism']}: {judged}", flush=True)
            keep_base(recipe.model, benches[recipe.model].shared.untouched)
    if rows := stored(ROWS):
        save("verdict_organisms", report(rows, load_bases(), len(RECIPES)))
        print(as_text(rows))


if __name__ == "__main__":
    main()
