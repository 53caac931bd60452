"""Forecasts frozen before real trainings, and scored after them: every run, the misses too.

Three kits and TruthfulQA (chosen: a common misconception), losses, β and learning rates
from far too small to far too large. Nothing of the forecast was set on these runs.

    python -m benchmarks.forecast_battery [PART OF A NAME …]   train these, keep the others as stored
"""

from __future__ import annotations

import csv
import dataclasses
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import RESULTS, save
from benchmarks.questions import TRUTHFULQA
from conviction import Query, chat, load_topic
from conviction.core.context import RunContext
from conviction.core.run import Run
from conviction.data.training_data import PreferencePair, TrainingData
from conviction.forecasting.pipeline import forecast
from conviction.forecasting.records import Forecast
from conviction.forecasting.rows import HeldOutPair, held_out_pairs
from conviction.forecasting.score import score_forecast
from conviction.interventions.dpo import Dpo
from conviction.interventions.sft import Sft
from conviction.models.hf import HFModel
from conviction.models.loading import load_model
from conviction.training.guard import Guard
from conviction.training.settings import Training


def training(rate: float, steps: int, **more: Any) -> Training:
    return Training(learning_rate=rate, epochs=100, max_steps=steps, checkpoint_every=0, **more)


CASES: dict[str, tuple[str, Any]] = {
    "obesity dpo 1e-4, 60 steps": ("obesity", Dpo(beta=0.1, training=training(1e-4, 60))),
    "truthfulqa dpo 2e-4, 60 steps": ("truthfulqa", Dpo(beta=0.1, training=training(2e-4, 60))),
    "politeness dpo 1e-4, 60 steps": ("politeness", Dpo(beta=0.1, training=training(1e-4, 60))),
    "brevity dpo 1e-4, 40 steps": ("brevity", Dpo(beta=0.1, training=training(1e-4, 40))),
    "obesity ipo 2e-4, 40 steps": ("obesity", Dpo(loss="ipo", beta=0.5, training=training(2e-4, 40))),
    "truthfulqa dpo_norm 2e-4, 40 steps": ("truthfulqa", Dpo(loss="dpo_norm", training=training(2e-4, 40))),
    "obesity dpo 1e-3 beta 0.05, 60 steps": ("obesity", Dpo(beta=0.05, training=training(1e-3, 60))),
    "politeness simpo 2e-4, 60 steps": ("politeness", Dpo(loss="simpo", training=training(2e-4, 60))),
    "truthfulqa dpo 8e-4 beta 0.05, 60 steps": ("truthfulqa", Dpo(beta=0.05, training=training(8e-4, 60))),
    "obesity sft 2e-4, 40 steps": ("obesity", Sft(training=training(2e-4, 40))),
    "obesity dpo 3e-4 beta 0.3, 30 steps": ("obesity", Dpo(beta=0.3, training=training(3e-4, 30))),
    "truthfulqa dpo 3e-5, 150 steps": ("truthfulqa", Dpo(beta=0.1, training=training(3e-5, 150))),
    "politeness dpo 2e-3 beta 0.02, 60 steps": ("politeness", Dpo(beta=0.02, training=training(2e-3, 60))),
    "obesity hinge 1e-4, 60 steps": ("obesity", Dpo(loss="hinge", beta=0.05, training=training(1e-4, 60))),
}


def truthfulqa() -> tuple[TrainingData, list[HeldOutPair]]:
    with TRUTHFULQA.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    random.Random(1).shuffle(rows)
    pairs = [
        PreferencePair(f"q{i}", chat(r["Question"]), r["Incorrect Answers"].split(";")[0].strip(), r["Best Answer"])
        for i, r in enumerate(rows[:100])
    ]
    return TrainingData("truthfulqa", tuple(pairs[:60])), [HeldOutPair(p, "target") for p in pairs[60:]]


def setting(name: str) -> tuple[TrainingData, list[HeldOutPair]]:
    if name == "truthfulqa":
        return truthfulqa()
    topic = load_topic(name)
    return TrainingData.from_topic(topic), held_out_pairs(topic)


def scores(model: Any, asked: list[HeldOutPair]) -> dict[str, Any]:
    found = model.logprobs([Query(q.pair.messages, (q.pair.chosen, q.pair.rejected)) for q in asked])
    return {q.pair.id: tuple(pair) for q, pair in zip(asked, found, strict=True)}


def measure(model: HFModel, name: str) -> dict[str, Any]:
    kit, intervention = CASES[name]
    training_data, asked = setting(kit)
    before = scores(model, asked)
    with tempfile.TemporaryDirectory() as place, Run.start(Path(place) / "run", topic=kit, verb="battery") as run:
        began = time.perf_counter()
        expected = run.save_forecast(
            forecast(intervention, model, training_data, held_out=asked, ctx=RunContext(guard=Guard()))
        )
        seconds = time.perf_counter() - began
        began = time.perf_counter()
        trained = intervention.apply(model, training_data, ctx=RunContext(guard=Guard(), run=run))
        spent = time.perf_counter() - began
        lines = (run.folder / "steps.jsonl").read_text(encoding="utf-8").splitlines()
    guard_stop = trained.guard_stop
    after = None if guard_stop else scores(trained.model, asked)
    scored = score_forecast(expected, before, after, guard_stop=guard_stop.step if guard_stop else None)
    return {
        "case": name,
        "verdict": expected.verdict.model_dump(),
        "score": scored.model_dump(),
        "guard_stop": None if guard_stop is None else {"step": guard_stop.step, "reasons": guard_stop.reasons},
        "expected_trip": None if expected.predicted_stop is None else expected.predicted_stop.model_dump(),
        "strain": expected.guard_utilisation,
        "reach": expected.extrapolation,
        "sampling_error": expected.sampling_error,
        "pilot": None if expected.pilot is None else expected.pilot.model_dump(),
        "signal": None if expected.signal is None else expected.signal.model_dump(),
        "forecast_seconds": {"whole": seconds, **expected.seconds},
        "setting_seconds": [s.seconds for s in expected.settings],
        "training_seconds": spent,
        "pairs": pairs_of(expected, before, after),
        "train_margin": margins(expected, [json.loads(line) for line in lines]),
    }


def pairs_of(expected: Forecast, before: dict[str, Any], after: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The rows behind the numbers: gaps per token, before, expected, real."""
    rows = []
    for o in expected.pair_forecasts:
        if o.split != "test":
            continue
        real = [side.logp_sum for side in after[o.id]] if after else [None, None]
        gap = after[o.id][0].logp_mean - after[o.id][1].logp_mean if after else None
        moved = [None if r is None else r - b.logp_sum for r, b in zip(real, before[o.id], strict=True)]
        rows.append({**o.model_dump(exclude={"question"}), "real_gap_nats": gap, "real_moved_nats": moved})
    return rows


def margins(expected: Forecast, steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Margin, loss and neutral text at the steps that the forecast tells, expected and real."""
    real = {s["step"]: s for s in steps}
    return [
        {
            "step": m.step,
            "margin": [m.margin, real[m.step].get("margin")],
            "loss": [m.loss, real[m.step]["loss"]],
            "neutral_drop": [-m.neutral_nats, real[m.step]["guard"]["neutral_drop"]],
        }
        for m in expected.step_forecasts
        if m.step in real
    ]


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    ended = [r for r in runs if r["guard_stop"] is None]
    wrong = [
        (p["right"], p["real_gap_nats"] > 0) for r in ended for p in r["pairs"] if counts(p) and p["start_nats"] < 0
    ]
    guesses, happened = np.array([w for w, _ in wrong]), np.array([h for _, h in wrong], dtype=float)
    tripped = [r for r in runs if r["guard_stop"] is not None]
    return {
        "runs": len(runs),
        "median_spearman": statistics.median(r["score"]["spearman"] for r in ended),
        "median_relative_error": statistics.median(r["score"]["relative_error"] for r in ended),
        "brier": float(((guesses - happened) ** 2).mean()),
        "brier_best_constant": float(happened.mean() * (1 - happened.mean())),
        "wrong_pairs": len(wrong),
        "flipped": int(happened.sum()),
        "stopped": len(tripped),
        "stops_expected": sum(r["expected_trip"] is not None for r in tripped),
        "stop_errors": [r["score"]["trip_error"] for r in tripped],
        "false_alarms": [r["case"] for r in ended if r["expected_trip"] is not None],
        "called_trainable_and_stopped": [r["case"] for r in tripped if r["verdict"]["kind"] == "trainable"],
        "slowest_setting_seconds": max((s for r in runs for s in r["setting_seconds"]), default=None),
    }


def counts(pair: dict[str, Any]) -> bool:
    return pair["role"] in {"target", "paraphrase"}


def stored() -> dict[str, dict[str, Any]]:
    path = RESULTS / "forecast_battery.json"
    return {r["case"]: r for r in json.loads(path.read_text(encoding="utf-8"))["runs"]} if path.exists() else {}


def main(names: list[str] | None = None) -> None:
    model = load_model("smollm2-135m", dtype="bf16")
    results = stored() if names else {}
    for case in CASES:
        if names and not any(n in case for n in names):
            continue
        results[case] = measure(model, case)
        brief = {k: results[case][k] for k in ("case", "score", "guard_stop", "expected_trip", "strain", "reach")}
        print(json.dumps(brief | {"verdict": results[case]["verdict"]["kind"]}), flush=True)
        runs = [results[c] for c in CASES if c in results]
        if sum(r["guard_stop"] is None for r in runs):
            save("forecast_battery", {"summary": summarise(runs), "guard": dataclasses.asdict(Guard()), "runs": runs})


if __name__ == "__main__":
    main(sys.argv[1:])
