"""``python -m benchmarks.calibration.defaults [--model M] [--topic T] [ARM …]``: the search of ``--tune`` on each kit.

A row in ``results/defaults.jsonl`` is a search that was done; it is not done again. ``results/defaults.json`` counts
how often each setting was chosen, and how far it moved the validation propositions.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.machine import RESULTS, machine, save
from benchmarks.rows import append, stored
from conviction import load_model, load_topic
from conviction.config.plan import plan_intervention
from conviction.core.context import Callbacks, RunContext
from conviction.studies.tuning import tune
from conviction.studies.tuning_records import Tuning

ROWS = RESULTS / "defaults.jsonl"
MINUTES = 60.0
MODELS, TOPICS = ("smollm2-135m", "gemma3-270m"), ("obesity", "politeness", "brevity")
ARMS = ("dpo", "sft", "distill", "pretrain", "rag")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("arms", nargs="*")
    parser.add_argument("--model", choices=MODELS)
    parser.add_argument("--topic", choices=TOPICS)
    asked = parser.parse_args()
    ctx = RunContext(callbacks=Callbacks(log=lambda line: print(line, flush=True)))
    for name in [asked.model] if asked.model else MODELS:
        model = load_model(name)
        for kit in [asked.topic] if asked.topic else TOPICS:
            for arm in asked.arms or ARMS:
                known = {"arm": arm, "model": name, "topic": kit}
                if any(known.items() <= row.items() for row in stored(ROWS)):
                    continue
                tuning = tune(plan_intervention(arm), load_topic(kit), model, ctx, minutes=MINUTES)
                append(ROWS, [known | {"tuning": tuning.model_dump(), "machine": machine()}])
                print(known, tuning.summary, flush=True)
    save("defaults", {"arms": counted(stored(ROWS))})


def counted(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """By arm: of every setting how often it was chosen, and where; and where nothing healthy was found."""
    arms: dict[str, Any] = {}
    for row in rows:
        tuning = Tuning.model_validate(row["tuning"])
        entry = arms.setdefault(row["arm"], {"chosen": Counter(), "searches": []})
        best = next((trial for trial in tuning.trials if trial.chosen), None)
        entry["searches"].append(
            {
                "model": row["model"],
                "topic": row["topic"],
                "chosen": best.words if best else tuning.summary,
                "steps": best.best.step if best and best.best else None,
                "shift_nats": best.best.shift_nats if best and best.best else None,
                "seconds": tuning.seconds,
            }
        )
        entry["chosen"][best.words if best else "none"] += 1
    return {arm: {**entry, "chosen": dict(entry["chosen"].most_common())} for arm, entry in arms.items()}


if __name__ == "__main__":
    main()
