"""``python -m benchmarks.calibration.tuning [ARM …]``: the search of ``--tune`` against nine real trainings an arm.

Both train on two thirds of the train split of ``obesity`` and read five doses of each run on the rest; of both the
largest healthy dose counts. A row in ``results/tuning_grid.jsonl`` is an arm that was done; it is not done again.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.machine import RESULTS, machine, save
from benchmarks.rows import append, stored
from conviction import load_model, load_topic
from conviction.config.plan import plan_intervention
from conviction.core.context import Callbacks, RunContext
from conviction.studies.tuning import tune
from conviction.studies.tuning_records import Tuning

ROWS = RESULTS / "tuning_grid.jsonl"
MINUTES = 240.0
GRIDS: dict[str, Mapping[str, Sequence[float]]] = {
    "sft": {"learning_rate": (2e-5, 5e-5, 1e-4, 1.5e-4, 2.5e-4, 5e-4, 7e-4, 1e-3, 2e-3)},
    "dpo": {"learning_rate": (1e-4, 2.5e-4, 5e-4), "beta": (0.05, 0.1, 0.3)},
    "distill": {"strength": (1.0, 1.3, 2.0), "learning_rate": (3e-4, 6e-4, 1.2e-3)},
}


def main(arms: Sequence[str]) -> None:
    topic, model = load_topic("obesity"), load_model("smollm2-135m")
    ctx = RunContext(callbacks=Callbacks(log=lambda line: print(line, flush=True)))
    for arm in arms or GRIDS:
        if any(row["arm"] == arm for row in stored(ROWS)):
            continue
        plan, axes = plan_intervention(arm), GRIDS[arm]
        cells = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
        searched = tune(plan, topic, model, ctx, minutes=MINUTES)
        grid = tune(plan, topic, model, ctx, minutes=MINUTES, cells=cells, confirmed=len(cells))
        row = compared(arm, searched, grid)
        append(ROWS, [row | {"searched": searched.model_dump(), "grid": grid.model_dump(), "machine": machine()}])
    save("tuning_grid", {"arms": [{k: v for k, v in row.items() if k not in SKIPPED} for row in stored(ROWS)]})


SKIPPED = {"searched", "grid"}


def compared(arm: str, searched: Tuning, grid: Tuning) -> dict[str, Any]:
    """Shifts in nats per token on validation propositions; shares: of the grid's."""
    ours, best = _best(searched), _best(grid)
    return {
        "arm": arm,
        "searched_nats": ours,
        "grid_nats": best,
        "share_of_shift": None if ours is None or not best else ours / best,
        "searched_seconds": searched.seconds,
        "grid_seconds": grid.seconds,
        "share_of_time": searched.seconds / grid.seconds,
        "chosen": searched.summary,
        "chosen_by_grid": grid.summary,
    }


def _best(tuning: Tuning) -> float | None:
    healthy = [trial.best.shift_nats for trial in tuning.trials if trial.best is not None]
    return max(healthy, default=None)


if __name__ == "__main__":
    main(sys.argv[1:])
