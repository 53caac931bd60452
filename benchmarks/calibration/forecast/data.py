"""The five data sets of the battery: what is trained on, and the pairs that are asked."""

from __future__ import annotations

import gzip
import json
import random

from benchmarks.questions import TRUTHFULQA
from conviction import chat, load_topic
from conviction.core.protocols import Message
from conviction.data.training_data import PreferencePair, TrainingData
from conviction.forecasting.rows import HeldOutPair, held_out_pairs

HH = TRUTHFULQA.with_name("hh_harmless_test.jsonl.gz")
TRAINED, ASKED = 60, 40
LONGEST = 900  # characters of an HH pair: longer ones take most of the time and tell nothing more
KITS = ("obesity", "politeness", "brevity")


def data_set(name: str) -> tuple[TrainingData, list[HeldOutPair]]:
    """What a run trains on, and what is asked of it."""
    if name in KITS:
        topic = load_topic(name)
        return TrainingData.from_topic(topic), held_out_pairs(topic)
    pairs = _truthfulqa() if name == "truthfulqa" else _hh()
    random.Random(1).shuffle(pairs)
    asked = [HeldOutPair(pair, "target") for pair in pairs[TRAINED : TRAINED + ASKED]]
    return TrainingData(name, tuple(pairs[:TRAINED])), asked


def _truthfulqa() -> list[PreferencePair]:
    import csv

    with TRUTHFULQA.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [
        PreferencePair(f"q{i}", chat(r["Question"]), r["Incorrect Answers"].split(";")[0].strip(), r["Best Answer"])
        for i, r in enumerate(rows)
    ]


def _hh() -> list[PreferencePair]:
    with gzip.open(HH, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    short = [(i, row) for i, row in enumerate(rows) if len(row["chosen"]) < LONGEST]
    pairs = [_pair(f"hh{i}", row["chosen"], row["rejected"]) for i, row in short]
    return [pair for pair in pairs if pair is not None]


def _pair(name: str, chosen: str, rejected: str) -> PreferencePair | None:
    """The common turns, and the last answer of each; None where they differ before it, or an answer is empty."""
    head, _, wanted = chosen.rpartition("\n\nAssistant:")
    other_head, _, other = rejected.rpartition("\n\nAssistant:")
    if head != other_head or not wanted.strip() or not other.strip() or wanted == other or len(other) > LONGEST:
        return None
    turns = []
    for part in head.split("\n\nHuman:")[1:]:
        asked, _, answered = part.partition("\n\nAssistant:")
        turns.append(Message("user", asked.strip()))
        if answered.strip():
            turns.append(Message("assistant", answered.strip()))
    return PreferencePair(name, tuple(turns), wanted.strip(), other.strip())
