"""What a forecast costs beside the training that it replaces, at the seed's size: 300 pairs, 3 epochs.

Both are run whole, each from an empty cache of scores, on pairs of the given shape
(``benchmarks/pairs.py``), with the questions of the obesity kit. Then settings of a sweep.

    python -m benchmarks.forecast_cost [SHAPE]    short by default
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.machine import save
from benchmarks.pairs import shaped_pairs
from conviction import chat, load_topic
from conviction.core.context import RunContext
from conviction.core.run import Run
from conviction.core.storage import cache_dir
from conviction.data.training_data import PreferencePair, TrainingData
from conviction.forecasting.pipeline import forecast
from conviction.forecasting.rows import held_out_pairs
from conviction.interventions.dpo import Dpo
from conviction.models.loading import load_model
from conviction.training.guard import Guard
from conviction.training.settings import Training

PAIRS, EPOCHS, RATE = 300, 3, 1e-5  # the seed's first run


@contextmanager
def empty_cache() -> Iterator[None]:
    """No scores are known; the model's files stay where they are."""
    before, models = os.environ.get("CONVICTION_CACHE"), cache_dir() / "models"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "models").symlink_to(models)
        os.environ["CONVICTION_CACHE"] = folder
        try:
            yield
        finally:
            os.environ.pop("CONVICTION_CACHE")
            if before is not None:
                os.environ["CONVICTION_CACHE"] = before


def main(shape: str = "short") -> None:
    model = load_model("smollm2-135m", dtype="bf16")
    rows = [r for r in shaped_pairs(shape, PAIRS + 50, model.tokenizer) if r["chosen"] != r["rejected"]][:PAIRS]
    pairs = [PreferencePair(f"r{i}", chat(r["prompt"]), r["chosen"], r["rejected"]) for i, r in enumerate(rows)]
    training_data = TrainingData(shape, tuple(pairs))
    asked = held_out_pairs(load_topic("obesity"))
    plan = Dpo(beta=0.1, training=Training(learning_rate=RATE, epochs=EPOCHS, checkpoint_every=0))
    sweep = [{"beta": b, "learning_rate": r} for b in (0.05, 0.1) for r in (1e-5, 3e-5, 1e-4)]
    with empty_cache():
        began = time.perf_counter()
        found = forecast(
            plan, model, training_data, held_out=asked, sweep=sweep, ctx=RunContext(guard=Guard(mode="off"))
        )
        of_forecast = time.perf_counter() - began
    print(found.seconds, of_forecast, flush=True)
    with empty_cache(), tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        trained = plan.apply(model, training_data, ctx=RunContext(guard=Guard(mode="off"), run=Run(Path(folder))))
        of_training = time.perf_counter() - began
    settings = [s.seconds for s in found.settings]
    swept = found.seconds["sweep"]
    save(
        f"forecast_cost_{shape}",
        {
            "pairs": PAIRS,
            "epochs": EPOCHS,
            "steps": found.steps,
            "tokens": trained.training.tokens,
            "forecast_seconds": found.seconds,
            "forecast_whole": of_forecast,
            "without_sweep": of_forecast - swept,
            "training_seconds": of_training,
            "share": (of_forecast - swept) / of_training,
            "setting_seconds": settings,
            "stand_ins": found.unsampled_examples,
        },
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
