"""The guard on runs of two models, against what the judge of a study says of them on the test split.

Each run is trained to its end with the guard off. Whether it is broken, the judge's metrics of damage and the reader of
``guard_battery`` say; the guard has no part in that. Where the guard's limits would have stopped it, it is trained
again with the guard, and the judge is asked about the model that comes back. Limits are fitted on half of the cases,
and errors are reported on the other half; a case is in the same half for both models.

A run is a line in ``results/guard_extended_runs.jsonl`` and is not trained again. ``--lock FILE`` holds a lock for
each two runs, ``--report`` trains nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import multiprocessing
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.guard_battery import CASES, Case, Reader, read_answers, read_trace, replay, training_data
from benchmarks.machine import RESULTS, save
from benchmarks.rows import append, locked, stored
from conviction import load_topic
from conviction.core.context import RunContext
from conviction.core.run import Run
from conviction.core.statistics import win_share
from conviction.interventions.dpo import Dpo
from conviction.models.hf import HFModel
from conviction.models.loading import load_model
from conviction.probing.depth import measure_depth
from conviction.probing.depth_records import Measurements
from conviction.probing.metrics import load_metrics
from conviction.probing.paired import Comparison
from conviction.training.guard import Guard
from conviction.training.sensors import SENSORS, Threshold
from conviction.training.settings import Training

STEPS, EVERY = 12, 4  # steps of a run, and from one look at its answers to the next
SMALL, OTHER = "smollm2-135m", "gemma3-270m"
ROWS = RESULTS / "guard_extended_runs.jsonl"
# What the fit may choose among, few of each, for 15 runs: a factor of all limits together, and two limits by
# themselves, which the first runs on another architecture had put in doubt.
FACTORS = (0.5, 0.7, 1.0, 1.4, 2.0)
SINGLY: dict[str, tuple[Any, ...]] = {"min_pluralism_p": (0.05, 0.01), "max_empty": (0, 1)}
BEFORE = {"min_pluralism_p": 0.05, "max_empty": 0}  # until this fit

# Its own settings, schedule and number of steps: healthy by every earlier limit, and called broken by a study.
REPORTED = Case(
    "obesity dpo 2.5e-4 beta 0.05, three epochs",
    "obesity",
    Dpo(beta=0.05, training=Training(learning_rate=2.5e-4, epochs=3)),
)
WEAK = Case("obesity simpo 5e-5", "obesity", Dpo(loss="simpo", training=Training(learning_rate=5e-5, warmup=0.0)))
MIDDLE = Case("obesity dpo 2.5e-4 beta 0.05", "obesity", Dpo(beta=0.05, training=Training(learning_rate=2.5e-4)))
ON_OTHER = (  # it takes twice as long: of each kind of end some
    "obesity dpo 1e-3 beta 0.05",
    "obesity dpo 5e-5",
    "obesity sft 1e-4",
    "obesity sft 1e-2",
    "obesity simpo 1e-3",
    "politeness dpo 1e-4",
    "politeness sft 2e-4",
    "brevity dpo 1e-4",
    "length gap dpo 1e-3 beta 0.05",
    "off-policy dpo 1e-3 beta 0.05",
    MIDDLE.name,
)


def short(case: Case) -> Case:
    """The case in so few steps, at a constant rate."""
    training = dataclasses.replace(
        case.intervention.training, max_steps=STEPS, epochs=20, warmup=0.0, schedule="constant"
    )
    return dataclasses.replace(case, intervention=dataclasses.replace(case.intervention, training=training))


def grid() -> list[tuple[str, Case]]:
    """(model, case) of all runs."""
    cases = [*map(short, [*CASES, WEAK, MIDDLE])]
    small = [(SMALL, case) for case in (REPORTED, *cases)]
    other = [(OTHER, case) for case in cases if case.name in ON_OTHER]
    twos = [runs[i : i + 2] for i in range(0, len(small), 2) for runs in (small, other)]  # they take about as long
    return [work for two in twos for work in two]


@cache
def loaded(name: str) -> HFModel:
    return load_model(name, dtype="bf16")


@cache
def untouched(name: str, topic: str) -> Measurements:
    return measure_depth(loaded(name), load_topic(topic), kinds=["damage"])


def run(work: tuple[str, Case]) -> dict[str, Any]:
    """One run without the guard, judged; and with it, where the limits of today would stop it."""
    torch.set_num_threads(1)
    name, case = work
    began, every = time.monotonic(), Guard().sample_every if case == REPORTED else EVERY
    model, data = loaded(name), training_data(case.training_data)
    topic = case.training_data if data.topic is not None else "obesity"
    base = untouched(name, topic)
    reader = Reader(model)
    changed, trace = trained(model, case, Guard(mode="off", sample_every=every))
    broken, first = read_answers(reader, trace)
    row: dict[str, Any] = {
        "model": name,
        "case": case.name,
        "topic": topic if data.topic is not None else None,
        "steps": len(trace),
        "harmed": harmed(base, measure_depth(changed, load_topic(topic), base=base, kinds=["damage"])),
        "answers_broken": broken[max(broken)] >= 2,
        "first_broken_step": first,
        "broken_by_step": broken,
    }
    stop, back, reasons = replay(trace, Guard(sample_every=every))
    row["replayed"] = {"stopped_at": stop, "returns_to": back, "reasons": reasons}
    row["guarded"] = guarded(model, case, every, base, reader, topic) if stop is not None else None
    return {**row, "sample_every": every, "seconds": round(time.monotonic() - began), "trace": trace}


def trained(model: HFModel, case: Case, guard: Guard) -> tuple[Any, list[dict[str, Any]]]:
    with tempfile.TemporaryDirectory() as name:
        ctx = RunContext(guard=guard, run=Run(Path(name)))
        outcome = case.intervention.apply(model, training_data(case.training_data), ctx=ctx)
        return outcome.changed, read_trace(Path(name))


def guarded(model: HFModel, case: Case, every: int, base: Measurements, reader: Reader, topic: str) -> dict[str, Any]:
    """The same run with the guard, and what the judge says of the model that comes back."""
    with tempfile.TemporaryDirectory() as name:
        ctx = RunContext(guard=Guard(sample_every=every), run=Run(Path(name)))
        outcome = case.intervention.apply(model, training_data(case.training_data), ctx=ctx)
        trace, stop = read_trace(Path(name)), outcome.guard_stop
        if stop is None:
            return {"stopped_at": None, "returns_to": len(trace), "reasons": [], "harmed": None, "answers_broken": None}
        back = stop.restored_step
        broken = read_answers(reader, trace)[0].get(back, 0) >= 2
        after = measure_depth(outcome.changed, load_topic(topic), base=base, kinds=["damage"]) if back else base
        return {
            "stopped_at": stop.step,
            "returns_to": back,
            "reasons": stop.reasons,
            "notes": outcome.notes,
            "harmed": harmed(base, after),
            "answers_broken": broken,
        }


def harmed(before: Measurements, after: Measurements) -> list[str]:
    """What the judge of a study calls lost."""
    change = Comparison(before=before, after=after)
    return [p.metric for m in load_metrics(["damage"]) for p in m.judge(change) if p.outcome == "no"]


# -- errors and the fit ---------------------------------------------------------


def scaled(factor: float, every: int, chosen: Mapping[str, Any]) -> Guard:
    """A guard with all limits of sensors that stop a run moved by a factor, up to where they may go, but for those."""
    limits: dict[str, Any] = {"sample_every": every}
    for sensor in SENSORS.values():
        if sensor.stops and isinstance(sensor.judge, Threshold):
            limit = sensor.judge.limit
            value = limit.default / factor if sensor.judge.floor else limit.default * factor
            most = math.inf if limit.at_most is None else limit.at_most
            limits[limit.name] = max(1, round(value)) if limit.type is int else min(value, most)
    return Guard(**limits | chosen)


def is_broken(row: dict[str, Any]) -> bool:
    """Whether the run's last model is: the judge calls something lost, or the reader half of the answers broken."""
    return bool(row["harmed"]) or row["answers_broken"]


def errors(rows: Sequence[dict[str, Any]], factor: float, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """False stops among sound runs, and broken runs that were not stopped, with Wilson's 95 % intervals."""
    stopped = {True: [0, 0], False: [0, 0]}
    for row in rows:
        stop, _, _ = replay(row["trace"], scaled(factor, row["sample_every"], chosen))
        count = stopped[is_broken(row)]
        count[0], count[1] = count[0] + (stop is not None), count[1] + 1
    (caught, broken), (false, sound) = stopped[True], stopped[False]
    return {"false_stops": share(false, sound), "misses": share(broken - caught, broken)}


def share(count: int, n: int) -> dict[str, Any] | None:
    """None: of nothing."""
    return dataclasses.asdict(win_share(count, n)) if n else None


def halves(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of every other case, by a hash of its name, and the rest."""
    cases = sorted({row["case"] for row in rows}, key=lambda case: hashlib.sha256(case.encode()).hexdigest())
    fitted = set(cases[::2])
    return [r for r in rows if r["case"] in fitted], [r for r in rows if r["case"] not in fitted]


def fit(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The limits with the fewest errors on one half (the nearest to those of before, of equals), and on the other."""
    fitted, rest = halves(rows)
    ways = [dict(zip(SINGLY, values, strict=True)) for values in product(*SINGLY.values())]
    by_choice = [(factor, way, errors(fitted, factor, way)) for factor in FACTORS for way in ways]

    def wrong(choice: tuple[float, dict[str, Any], dict[str, Any]]) -> tuple[int, float, int]:
        factor, way, result = choice
        total = sum(count["wins"] for count in result.values() if count)
        return total, abs(math.log(factor)), sum(way[name] != value for name, value in BEFORE.items())

    factor, way, _ = min(by_choice, key=wrong)
    return {
        "chosen": {"factor": factor, **way},
        "fitted_on": [{"factor": f, **w, **result} for f, w, result in by_choice],
        "reported_on": {"fitted": errors(rest, factor, way), "before": errors(rest, 1.0, BEFORE)},
        "all_runs": {"fitted": errors(rows, factor, way), "before": errors(rows, 1.0, BEFORE)},
    }


def report(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the runs show."""
    stopped = [row for row in rows if row["guarded"] and row["guarded"]["stopped_at"] is not None]
    returned = sum(bool(r["guarded"]["harmed"]) or bool(r["guarded"]["answers_broken"]) for r in stopped)
    differ = [r for r in rows if r["guarded"] and r["guarded"]["stopped_at"] != r["replayed"]["stopped_at"]]
    fitted, _ = halves(rows)
    names = {(row["model"], row["case"]) for row in fitted}
    return {
        "steps": STEPS,
        "runs": len(rows),
        "of": len(grid()),
        "seconds": sum(row["seconds"] for row in rows),
        "fit": fit(rows),
        "returned_models_broken": share(returned, len(stopped)),
        "replay_differs": [f"{row['model']}/{row['case']}" for row in differ],
        "rows": [
            {k: v for k, v in row.items() if k != "trace"}
            | {"broken": is_broken(row), "half": "fitted" if (row["model"], row["case"]) in names else "reported"}
            for row in rows
        ],
    }


# -- running --------------------------------------------------------------------


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="guard_battery --extended", description=__doc__)
    parser.add_argument("--lock", type=Path)
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--only", default="", help="cases whose names hold this")
    options = parser.parse_args(arguments)
    done = {(row["model"], row["case"]) for row in stored(ROWS)}
    left = [(m, c) for m, c in grid() if (m, c.name) not in done and options.only in c.name]
    if left and not options.report:
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            for i in range(0, len(left), 2):
                with locked(options.lock):
                    rows = pool.map(run, left[i : i + 2], chunksize=1)
                append(ROWS, rows)
                for row in rows:
                    shown = ("model", "case", "harmed", "answers_broken", "replayed", "guarded", "seconds")
                    print(json.dumps({k: row[k] for k in shown}, ensure_ascii=False), flush=True)
    save("guard_battery_extended", report(stored(ROWS)))


if __name__ == "__main__":
    main([])
