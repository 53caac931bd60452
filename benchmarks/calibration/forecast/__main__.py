"""``python -m benchmarks.calibration.forecast [--model M] [DATA …]``: the runs of PROTOCOL.md that are not done yet.

A row in ``results/forecast_runs.jsonl`` is a run with its frozen forecast, its baselines and what happened; the
summary is in ``results/forecast_runs.json``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.calibration.forecast.baselines import guesses
from benchmarks.calibration.forecast.data import KITS, data_set
from benchmarks.calibration.forecast.summary import summarise
from benchmarks.forecast_battery import scores
from benchmarks.machine import RESULTS, machine, save
from benchmarks.rows import append, stored
from conviction import load_model
from conviction.core.context import RunContext
from conviction.core.options import flat
from conviction.core.run import Run
from conviction.data.training_data import TrainingData
from conviction.forecasting import pipeline
from conviction.forecasting.records import Forecast
from conviction.forecasting.rows import HeldOutPair
from conviction.forecasting.score import score_forecast
from conviction.interventions.dpo import Dpo
from conviction.interventions.sft import Sft
from conviction.models.hf import HFModel
from conviction.training.guard import Guard
from conviction.training.settings import Training

ROWS = RESULTS / "forecast_runs.jsonl"
DATA = (*KITS, "truthfulqa", "hh")
NAMED = "as named"


def _training(rate: float, steps: int) -> Training:
    return Training(learning_rate=rate, epochs=100, max_steps=steps, checkpoint_every=0)


SETTINGS: dict[str, Any] = {
    "dpo 1e-4, β 0.1": Dpo(beta=0.1, training=_training(1e-4, 40)),
    "dpo 3e-4, β 0.1": Dpo(beta=0.1, training=_training(3e-4, 30)),
    "dpo 8e-4, β 0.05": Dpo(beta=0.05, training=_training(8e-4, 30)),
    "simpo 2e-4": Dpo(loss="simpo", training=_training(2e-4, 40)),
    "sft 2e-4": Sft(training=_training(2e-4, 40)),
    "sft 5e-4": Sft(training=_training(5e-4, 30)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="*", choices=[*DATA, []], default=[])
    parser.add_argument("--model", default="smollm2-135m")
    asked = parser.parse_args()
    model = load_model(asked.model)
    assert isinstance(model, HFModel)
    for name in asked.data or DATA:
        data, questions = data_set(name)
        named: list[Mapping[str, Any]] = []
        for label, intervention in [*SETTINGS.items(), (NAMED, None)]:
            known = {"model": asked.model, "data": name, "settings": label}
            rows = [row for row in stored(ROWS) if known.items() <= row.items()]
            if not rows and (intervention is not None or named):
                arm = intervention or Dpo(**{**_flat(SETTINGS["dpo 1e-4, β 0.1"]), **named[0]})
                rows = [known | measured(arm, model, data, questions) | {"machine": machine()}]
                append(ROWS, rows)
                print({k: rows[0][k] for k in (*known, "verdict", "guard_stop", "score")}, flush=True)
            if label == "dpo 1e-4, β 0.1":
                named = rows[0]["named"]
    save("forecast_runs", summarise(stored(ROWS)))


def measured(arm: Any, model: HFModel, data: TrainingData, questions: Sequence[HeldOutPair]) -> dict[str, Any]:
    """The frozen forecast of one run, the baselines, and what happened."""
    before = scores(model, questions)
    captured: list[Any] = []

    def linearize(task: Any, *arguments: Any, **named: Any) -> Any:
        captured[:] = [task, _linearize(task, *arguments, **named)]
        return captured[1]

    _linearize, pipeline.linearize = pipeline.linearize, linearize
    try:
        with tempfile.TemporaryDirectory() as place, Run.start(Path(place) / "run", topic="", verb="battery") as run:
            began = time.perf_counter()
            expected = pipeline.forecast(arm, model, data, held_out=questions, ctx=RunContext(guard=Guard()))
            run.save_forecast(expected)
            seconds = time.perf_counter() - began
            simple = guesses(model, data.pairs, *captured)
            began = time.perf_counter()
            trained = arm.apply(model, data, RunContext(guard=Guard(), run=run))
            training_seconds = time.perf_counter() - began
    finally:
        pipeline.linearize = _linearize
    stop = trained.guard_stop
    after = None if stop else scores(trained.changed, questions)
    return {
        "options": flat(arm),
        "verdict": expected.verdict.kind,
        "named": _named(expected),
        "predicted_stop": expected.predicted_stop.step if expected.predicted_stop else None,
        "guard_stop": [stop.step, list(stop.reasons)] if stop else None,
        "score": score_forecast(expected, before, after, guard_stop=stop.step if stop else None).model_dump(),
        "pairs": _rows(expected, questions, simple, after),
        "forecast_seconds": {"whole": seconds, **expected.seconds},
        "training_seconds": training_seconds,
    }


def _named(expected: Forecast) -> list[dict[str, Any]]:
    """Settings that are expected to do, those that flip most first: what the verdict names."""
    if expected.verdict.kind != "only with these settings":
        return []
    good = [s for s in expected.settings if s.safe and s.flips and s.flips.expected >= 0.5 * s.flips.wrong]
    return [dict(s.options) for s in sorted(good, key=lambda s: -(s.flips.expected if s.flips else 0.0))]


def _rows(
    expected: Forecast, questions: Sequence[HeldOutPair], simple: Mapping[str, Any], after: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """Pair by pair: gaps per token before, expected and real, and what each baseline moves it by."""
    places = {one.pair.id: i for i, one in enumerate(questions)}
    rows = []
    for one in expected.pair_forecasts:
        if not one.counts:
            continue
        gap = None if after is None else after[one.id][0].logp_mean - after[one.id][1].logp_mean
        moved = {name: float(np.asarray(values)[places[one.id]]) for name, values in simple.items()}
        rows.append({**one.model_dump(exclude={"question", "split"}), "real_gap_nats": gap, "baselines": moved})
    return rows


def _flat(arm: Any) -> dict[str, Any]:
    given = flat(arm)
    return {name: given[name] for name in ("beta", "learning_rate", "epochs", "max_steps", "checkpoint_every")}


if __name__ == "__main__":
    main()
