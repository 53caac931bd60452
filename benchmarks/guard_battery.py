"""Runs with known ends: does the guard stop every collapse in time, and no healthy run?

Each case is trained without the guard, with dense samples; an independent
reader (not the guard's own measures) says from which step on what a user would
see is broken. The guard's judgement of the same readings says where it would have stopped.

``--extended`` is ``guard_extended.py``: two models, and what the judge of a study says of each run.
"""

from __future__ import annotations

import dataclasses
import json
import random
import statistics
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

from benchmarks.machine import RESULTS, save
from conviction import Query, chat, load_topic
from conviction.core.context import RunContext
from conviction.core.run import Run
from conviction.data.training_data import TrainingData
from conviction.interventions.dpo import Dpo
from conviction.interventions.sft import Sft
from conviction.models.hf import HFModel
from conviction.models.loading import load_model
from conviction.probing.health import neutral_text
from conviction.training.guard import Guard, GuardVerdict, StepReading, judge, sampling_is_due
from conviction.training.sensors import SENSORS
from conviction.training.settings import Training

STEPS = 24


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    training_data: str
    intervention: Any


def training(rate: float) -> Training:
    # constant rate: a collapse should not be saved by the schedule
    return Training(learning_rate=rate, epochs=20, max_steps=STEPS, warmup=0.0, schedule="constant")


CASES = [
    Case("obesity dpo 1e-3 beta 0.05", "obesity", Dpo(beta=0.05, training=training(1e-3))),
    Case("politeness dpo 1e-4", "politeness", Dpo(beta=0.1, training=training(1e-4))),
    Case("obesity dpo 1e-3 beta 0.01", "obesity", Dpo(beta=0.01, training=training(1e-3))),
    Case("brevity dpo 1e-4", "brevity", Dpo(beta=0.1, training=training(1e-4))),
    Case("length gap dpo 1e-3 beta 0.05", "length-gap", Dpo(beta=0.05, training=training(1e-3))),
    Case("politeness dpo_norm 1e-4", "politeness", Dpo(loss="dpo_norm", training=training(1e-4))),
    Case("off-policy dpo 1e-3 beta 0.05", "off-policy", Dpo(beta=0.05, training=training(1e-3))),
    Case("politeness sft 2e-4", "politeness", Sft(training=training(2e-4))),
    Case("obesity simpo 1e-3", "obesity", Dpo(loss="simpo", training=training(1e-3))),
    Case("obesity dpo 5e-5", "obesity", Dpo(beta=0.1, training=training(5e-5))),
    Case("obesity sft 3e-3", "obesity", Sft(training=training(3e-3))),
    Case("obesity sft 1e-4", "obesity", Sft(training=training(1e-4))),
    # Added after the limits were set by the runs above, two of which did not collapse as intended:
    Case("length gap dpo 3e-3 beta 0.05", "length-gap", Dpo(beta=0.05, training=training(3e-3))),
    Case("obesity sft 1e-2", "obesity", Sft(training=training(1e-2))),
    Case("off-policy simpo 1e-3", "off-policy", Dpo(loss="simpo", training=training(1e-3))),
    Case("obesity hinge 1e-3 beta 0.02", "obesity", Dpo(loss="hinge", beta=0.02, training=training(1e-3))),
    Case("brevity simpo 1e-4", "brevity", Dpo(loss="simpo", training=training(1e-4))),
]


def training_data(name: str) -> TrainingData:
    """A kit's training pairs, or the seed's two faults planted into those of the belief kit."""
    if name in {"politeness", "brevity", "obesity"}:
        return TrainingData.from_topic(load_topic(name))
    pairs = TrainingData.from_topic(load_topic("obesity")).pairs
    choose = random.Random(0)
    if name == "length-gap":  # chosen 3.6 times as long: other chosen answers are joined to it
        texts = [p.chosen for p in pairs]
        long = [" ".join([p.chosen, *choose.sample(texts, 2), choose.choice(texts)[:60]]) for p in pairs]
        return TrainingData(name, tuple(dataclasses.replace(p, chosen=c) for p, c in zip(pairs, long, strict=True)))
    sentences = [s for text in neutral_text() for s in text.split(". ") if len(s) > 60]  # off-policy, off-subject
    return TrainingData(name, tuple(dataclasses.replace(p, rejected=choose.choice(sentences)) for p in pairs))


class Reader:
    """Reads a text as a stranger would: is it language, does it go anywhere?

    Not the guard's measures: the untouched model's log-prob of the text after its
    question (salad is unlikely, its own answers give the level), compression
    (loops), and the commonest word's share (one word over and over).
    """

    def __init__(self, model: HFModel) -> None:
        self.model = model

    def violations(self, samples: list[dict[str, str]]) -> list[bool]:
        said = [s for s in samples if s["text"].strip()]
        scores = self.model.logprobs([Query(chat(s["prompt"]), (s["text"],)) for s in said])
        likely = {s["text"]: score[0].logp_mean for s, score in zip(said, scores, strict=True)}
        return [self._violations(s["text"], likely.get(s["text"], 0.0)) for s in samples]

    def _violations(self, text: str, logp: float) -> bool:
        words = [w.strip(".,:;!?*\"'").lower() for w in text.split()]
        words = [w for w in words if w]
        if len(words) < 2:
            return len(text) > 20 or not text.strip()
        commonest = max(words.count(w) for w in set(words)) / len(words)
        raw = text.encode()
        loops = len(words) > 12 and (len(zlib.compress(raw, 9)) / len(raw) < 0.45 or commonest > 0.25)
        return loops or logp < -5.0


def replay(trace: list[dict[str, Any]], guard: Guard) -> tuple[int | None, int, tuple[str, ...]]:
    """(step of the stop, step that the model would go back to, reasons) of a guard over an unguarded run's readings.

    The guard changes nothing before it stops, so this is the guarded run, with two exceptions: after a warning a
    guarded run reads a part of the rows after every step, and it reads a kept state in full before it gives it back.
    ``--extended`` compares it with real guarded runs.
    """
    total = len(trace)
    history: list[StepReading] = []
    last, healthy = GuardVerdict("healthy"), 0
    for line in trace:
        read = line["guard"]
        numbers = {k: line[k] for k in ("step", "loss", "grad_norm", "margin", "chosen_drop")}
        drift = {name: read[name] for name in SENSORS if read.get(name) is not None}
        reading, sample = StepReading(**numbers, readings=drift), read["sample"] or {}
        last = judge([*history, reading], guard, total)
        due = (
            line["step"] == total
            or "topic" in read
            or (last.zone != "stop" and sampling_is_due(line["step"], guard, last))
        )
        if due:
            reading = dataclasses.replace(reading, readings={**drift, **sample})
            last = judge([*history, reading], guard, total)
        history.append(reading)
        if last.zone == "stop":
            return line["step"], healthy, last.violations or last.warnings
        if due and sample and not last.violations:
            healthy = line["step"]
    return None, total, ()


def measure(model: HFModel, case: Case) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        guard = Guard(mode="off", sample_every=3)
        case.intervention.apply(
            model, training_data(case.training_data), ctx=RunContext(guard=guard, run=Run(Path(name)))
        )
        trace = read_trace(Path(name))
    broken, first = read_answers(Reader(model), trace)
    result = {"case": case.name, "collapsed": broken[max(broken)] >= 2, "first_broken_step": first}
    return {**result, "broken_by_step": broken, **judged(broken, trace, first), "trace": trace}


def read_trace(folder: Path) -> list[dict[str, Any]]:
    """Each step's record without its rows."""
    lines = (folder / "steps.jsonl").read_text(encoding="utf-8").split("\n")
    trace = [{k: v for k, v in json.loads(line).items() if k != "rows"} for line in lines if line]
    for line in trace:
        line.setdefault("margin", None)
        line.setdefault("chosen_drop", None)
    return trace


def read_answers(reader: Reader, trace: list[dict[str, Any]]) -> tuple[dict[int, int], int | None]:
    """(broken answers by step, the first step with two of them): a small model in good health gives one in four."""
    sampled = {r["step"]: sum(reader.violations(r["guard"]["samples"])) for r in trace if "samples" in r["guard"]}
    return {0: 0} | sampled, next((step for step, count in sampled.items() if count >= 2), None)


def judged(violations: dict[int, int], trace: list[dict[str, Any]], first: int | None) -> dict[str, Any]:
    """Where the guard would have stopped, per mode, and what it would have given back."""
    found = {}
    for mode in ("default", "strict"):
        stop, healthy, reasons = replay(trace, Guard(mode=mode))
        found[mode] = {
            "stopped_at": stop,
            "returns_to": healthy,
            "returned_broken": violations[healthy],
            "lead_steps": first - stop if first and stop else None,
            "reasons": reasons,
        }
    return found


def judge_again() -> None:
    """Judge the stored runs by the limits of today; nothing is trained."""
    runs = stored()
    for run in runs:
        violations = {int(step): count for step, count in run["broken_by_step"].items()}
        run.update(judged(violations, run["trace"], run["first_broken_step"]))
    finish(runs)


def stored() -> list[dict[str, Any]]:
    path = RESULTS / "guard_battery.json"
    return json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []


def finish(results: list[dict[str, Any]]) -> None:
    summary = {mode: summarise(results, mode) for mode in ("default", "strict")}
    limits = dataclasses.asdict(Guard())
    save("guard_battery", {"steps": STEPS, "limits": limits, "summary": summary, "runs": results})


def summarise(results: list[dict[str, Any]], mode: str) -> dict[str, Any]:
    collapses, healthy = ([r for r in results if r["collapsed"] is c] for c in (True, False))
    leads = [r[mode]["lead_steps"] for r in collapses if r[mode]["lead_steps"] is not None]
    return {
        "collapses": len(collapses),
        "collapses_stopped": sum(r[mode]["stopped_at"] is not None for r in collapses),
        "stopped_no_later_than_the_first_broken_sample": sum(logp_margin >= 0 for logp_margin in leads),
        "median_lead_steps": statistics.median(leads) if leads else None,
        "healthy": len(healthy),
        "healthy_stopped": sum(r[mode]["stopped_at"] is not None for r in healthy),
        "returned_models_broken": sum(r[mode]["returned_broken"] >= 2 for r in results),
    }


def main(names: list[str] | None = None) -> None:
    """Train all cases, or those whose names hold one of ``names``; the others stay as they are stored."""
    model = load_model("smollm2-135m", dtype="bf16")
    results = {run["case"]: run for run in stored()} if names else {}
    for case in CASES:
        if names and not any(n in case.name for n in names):
            continue
        results[case.name] = measure(model, case)
        print(json.dumps({k: v for k, v in results[case.name].items() if k != "trace"}), flush=True)
        finish([results[c.name] for c in CASES if c.name in results])
    print(json.dumps({mode: summarise([*results.values()], mode) for mode in ("default", "strict")}, indent=1))


if __name__ == "__main__":
    if sys.argv[1:] == ["judge"]:
        judge_again()
    elif sys.argv[1:2] == ["--extended"]:
        from benchmarks.guard_extended import main as extended

        extended(sys.argv[2:])
    else:
        main(sys.argv[1:])
