"""What every rule of the audit measures on data that is known: where its limits come from.

Anthropic's HH and TruthfulQA where copies lie beside the project, the built-in kits, and
kits with a fault planted. The pages of the rules quote these numbers.
"""

from __future__ import annotations

import csv
import dataclasses
from itertools import cycle
from typing import Any

from benchmarks.audit import HH, transcripts
from benchmarks.guard_battery import training_data as faulty
from benchmarks.machine import save
from benchmarks.questions import TRUTHFULQA
from conviction import Topic, load_model, load_topic
from conviction.auditing.linter import audit
from conviction.auditing.records import AuditReport
from conviction.core.protocols import LanguageModel
from conviction.data.formats import training_data_from_rows
from conviction.data.training_data import PreferencePair, TrainingData

KITS = ("obesity", "politeness", "brevity")
WITH_MODEL = {"TruthfulQA": 400, "HH": 250}


def truthfulqa() -> TrainingData:
    with TRUTHFULQA.open(encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    pairs = [
        {"prompt": r["Question"], "chosen": r["Best Answer"], "rejected": r["Incorrect Answers"].split(";")[0].strip()}
        for r in rows
    ]
    return training_data_from_rows(pairs, name="TruthfulQA")


def hh_pairs(n: int) -> TrainingData:
    _, rows = transcripts()
    usable = [r for r in rows if all(r[side].rpartition("Assistant:")[2].strip() for side in r)]
    return training_data_from_rows(usable[:n], name="HH")


def planted(model: LanguageModel) -> dict[str, TrainingData]:
    """The seed's two faults in the belief kit, and the model's own answers against sentences of neutral text."""
    pairs, off_policy = TrainingData.from_topic(load_topic("obesity")).pairs, faulty("off-policy")
    sentences = [pair.rejected for pair in off_policy.pairs]
    asked = [p.messages for p in hh_pairs(60).pairs] if HH.is_file() else [p.messages for p in pairs]
    written = model.generate(asked, max_new_tokens=60)
    own = [
        PreferencePair(str(i), m, g.text, r)
        for i, (m, g, r) in enumerate(zip(asked, written, cycle(sentences), strict=False))
    ]
    return {
        "length gap": faulty("length-gap"),
        "off-policy": off_policy,
        "own against neutral text": TrainingData("e", tuple(p for p in own if p.chosen.strip())),
    }


def record(report: AuditReport) -> dict[str, Any]:
    found = [f"{f.level} {f.code} {f.name}: {f.message}" for f in report.findings]
    return {"pairs": report.usable, "findings": found, "measures": report.metrics}


def main() -> None:
    model = load_model()
    results: dict[str, Any] = {"model": model.id}

    def look(name: str, data: Any, *, topic: Topic | None = None, asked: LanguageModel | None = None) -> None:
        results[name] = record(audit(data, topic=topic, model=asked))
        print(name, *results[name]["findings"], sep="\n  ", flush=True)

    for name in KITS:
        look(name, TrainingData.from_topic(load_topic(name)), topic=load_topic(name))
        look(f"{name}, with model", TrainingData.from_topic(load_topic(name)), topic=load_topic(name), asked=model)
    if HH.is_file():
        look("HH", HH)
        look("HH, topic obesity", HH, topic=load_topic("obesity"))
        look("HH, with model", hh_pairs(WITH_MODEL["HH"]), asked=model)
    if TRUTHFULQA.is_file():
        look("TruthfulQA", truthfulqa())
        training_data = truthfulqa()
        few = dataclasses.replace(training_data, pairs=training_data.pairs[: WITH_MODEL["TruthfulQA"]])
        look("TruthfulQA, with model", few, asked=model)
    for name, training_data in planted(model).items():
        look(f"planted: {name}, with model", training_data, asked=model)
    save("audit_calibration", results)


if __name__ == "__main__":
    main()
