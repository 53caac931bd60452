"""``python -m benchmarks.calibration.tuning [--model M] [--topic T] [ARM …]``: ``--tune`` against nine settings each.

All nine are forecast, where that is possible, and tried as a search tries settings: trained on two thirds of the train
split, read on the rest at six doses, of which the largest healthy one counts. A search would have tried some of them,
in its order: what it would have found, and in how many seconds, is looked up in the rows. A run with the same seed does
the same, so that trying them twice would tell nothing. A row in ``results/tuning_grid.jsonl`` is a grid that was done;
it is not done again.
"""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.machine import RESULTS, machine, save
from benchmarks.rows import append, stored
from conviction import load_model, load_topic
from conviction.config.plan import Plan, plan_intervention
from conviction.core.context import Callbacks, RunContext
from conviction.studies.trial_order import next_trial
from conviction.studies.tuning import CONFIRMED, search_cells, tune
from conviction.studies.tuning_records import Trial, Tuning

ROWS = RESULTS / "tuning_grid.jsonl"
MINUTES = 240.0
GRIDS: dict[str, Mapping[str, Sequence[Any]]] = {
    "steer": {"layer": (9, 13, 18), "strength": (2.0, 4.0, 8.0)},
    "distill": {"strength": (1.0, 1.3, 2.0), "learning_rate": (1.5e-4, 3e-4, 6e-4)},
    "dpo": {"learning_rate": (1e-4, 2.5e-4, 5e-4), "beta": (0.05, 0.1, 0.3)},
    "sft": {"learning_rate": (5e-5, 1e-4, 1.5e-4, 2.5e-4, 3.5e-4, 5e-4, 7e-4, 1e-3, 2e-3)},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("arms", nargs="*")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--topic", default="obesity")
    asked = parser.parse_args()
    topic, model = load_topic(asked.topic), load_model(asked.model)
    ctx = RunContext(callbacks=Callbacks(log=lambda line: print(line, flush=True)))
    for arm in asked.arms or GRIDS:
        known = {"arm": arm, "model": asked.model, "topic": asked.topic}
        if any(known.items() <= row.items() for row in stored(ROWS)):
            continue
        axes, plan = GRIDS[arm], plan_intervention(arm)
        cells = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
        cells += [cell for cell in search_cells(plan) if cell not in cells]  # of what chooses by itself: no settings
        grid = tune(plan, topic, model, ctx, minutes=MINUTES, cells=cells, confirmed=len(cells))
        append(ROWS, [known | {"grid": grid.model_dump(), "machine": machine()}])
        save("tuning_grid", {"grids": [compared(row) for row in stored(ROWS)]})


def compared(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a search would have found of what the grid has. Shifts in nats per token on validation propositions."""
    grid, plan = Tuning.model_validate(row["grid"]), plan_intervention(row["arm"])
    tried, seconds = searched(plan, grid)
    ours, best = _best(tried), _best(grid.trials)
    return {name: row[name] for name in ("arm", "model", "topic")} | {
        "searched": ours and [ours.words, ours.best and [ours.best.shift_nats, ours.best.step]],
        "grid": best and [best.words, best.best and [best.best.shift_nats, best.best.step]],
        "share_of_shift": ours.best.shift_nats / best.best.shift_nats
        if ours and best and ours.best and best.best
        else None,
        "trials": [len(tried), len(grid.trials)],
        "seconds": [round(seconds), round(grid.seconds)],
        "share_of_time": seconds / grid.seconds,
        "steps": [_steps(tried), _steps(grid.trials)],
    }


def searched(plan: Plan, grid: Tuning) -> tuple[list[Trial], float]:
    """The trials of the grid that a search makes, in its order, and the seconds that it takes, forecasts included."""
    cells, known = search_cells(plan), {trial.words: trial for trial in grid.trials}
    asked = [trial for trial in grid.trials if trial.options in cells]
    if len(asked) < len(cells):
        raise ValueError(f"the grid of {plan.intervention.name} lacks settings of its search space")
    asked.sort(key=lambda trial: (-(trial.forecast_nats or 0.0), cells.index(trial.options)))
    trials = [trial.model_copy(update={"doses": (), "guard_stop": None, "failure": None}) for trial in asked]
    tried: list[Trial] = []
    while (number := next_trial(plan, trials, CONFIRMED)) is not None and not trials[number].made:
        trials[number] = known[trials[number].words]
        tried.append(trials[number])
    forecast = sum(one.forecast_seconds for one in grid.trials)
    return tried, forecast + sum(one.seconds - one.forecast_seconds for one in tried)


def _steps(trials: Sequence[Trial]) -> int:
    """That were really done, up to a stop: unlike seconds they do not depend on what else the machine does."""
    return sum(_stopped_after(trial.guard_stop) or trial.steps or 0 for trial in trials)


def _stopped_after(stop: str | None) -> int | None:
    step = re.match(r"step (\d+)", stop or "")
    return int(step[1]) if step else None


def _best(trials: Sequence[Trial]) -> Trial | None:
    if len(trials) == 1:  # that chooses its settings by itself: what it breaks is read where it is applied
        (dose,) = trials[0].doses
        return trials[0].model_copy(update={"doses": (dose.model_copy(update={"damage_read": True}),)})
    healthy = [trial for trial in trials if trial.best is not None]
    return max(healthy, key=lambda trial: trial.best.shift_nats if trial.best else 0.0, default=None)


if __name__ == "__main__":
    main()
