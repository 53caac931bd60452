"""How long an audit takes: 100,000 pairs without a model, and what the model's rules add to a scoring pass.

Pairs are those of Anthropic's HH where a copy lies beside the project, and mixtures of
their sentences of the same lengths; else mixtures of the built-in kits' sentences.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import save
from conviction import Query, load_model, load_topic
from conviction.auditing.linter import audit
from conviction.data.reading import read_training_data
from conviction.data.training_data import TrainingData

HH = Path(__file__).parents[2] / "shared" / "data" / "hh_harmless_test.jsonl.gz"
PAIRS = 100_000
MEASURED, ROUNDS = 160, 4


def transcripts() -> tuple[str, list[dict[str, str]]]:
    if HH.is_file():
        return "Anthropic HH, harmless-base, test", [json.loads(line) for line in gzip.open(HH, "rt", encoding="utf-8")]
    items = [i for name in ("obesity", "politeness", "brevity") for i in load_topic(name).items]
    rows = [[f"\n\nHuman: {i.question}\n\nAssistant: {text}" for text in i.answers.values()] for i in items]
    return "built-in kits", [{"chosen": a, "rejected": b} for a, b in rows]


def hh_like(rows: list[dict[str, str]], n: int, seed: int = 0) -> list[dict[str, str]]:
    """The rows, then mixtures: a conversation's shape with other rows' sentences, so that nothing repeats."""
    choose = random.Random(seed)
    sentences = [s for row in rows for s in re.split(r"(?<=[.?!])\s+", row["chosen"].replace("\n", " ")) if s]

    def text(size: int) -> str:
        said: list[str] = []
        while sum(map(len, said)) < size:
            said.append(choose.choice(sentences).replace("Human:", "").replace("Assistant:", "").strip())
        return " ".join(said)[: max(size, 20)].strip() or "Yes."

    made = []
    for i in range(n):
        if i < len(rows):
            made.append(rows[i])
            continue
        row = rows[i % len(rows)]
        start, _, _ = row["chosen"].rpartition("\n\nAssistant:")
        turns = max(1, start.count("\n\nHuman:"))
        asked = "".join(f"\n\nHuman: {text(len(start) // (2 * turns))}\n\nAssistant: {text(40)}" for _ in range(turns))
        asked = asked.rpartition("\n\nAssistant:")[0] + "\n\nAssistant: "
        ends = [len(row[side]) - len(start) - 12 for side in ("chosen", "rejected")]
        made.append({"chosen": asked + text(ends[0]), "rejected": asked + text(ends[1])})
    return made


def without_model() -> dict[str, Any]:
    name, rows = transcripts()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.jsonl"
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in hh_like(rows, PAIRS))
        seconds = []
        for _ in range(3):
            begin = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-m", "conviction", "audit", str(path), "--format", "json"],
                capture_output=True,
                text=True,
                check=False,
            )
            seconds.append(time.perf_counter() - begin)
        size = path.stat().st_size
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    report = json.loads(done.stdout)
    return {
        "data": name,
        "pairs": report["read"],
        "megabytes": size // 2**20,
        "seconds": [round(s, 1) for s in seconds],
        "peak_mb": peak,
        "rules": len(report["checked"]),
    }


def with_model() -> dict[str, Any]:
    """A plain scoring pass and an audit's model rules over the same pairs, alternating."""
    model = load_model()
    name, rows = transcripts()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.jsonl"
        usable = [row for row in rows if all(row[s].rpartition("Assistant:")[2].strip() for s in row)]
        path.write_text("".join(json.dumps(row) + "\n" for row in usable[:MEASURED]), encoding="utf-8")
        training_data: TrainingData = read_training_data(path)
    queries = [Query(p.messages, (p.chosen, p.rejected)) for p in training_data.pairs]
    plain, audited = [], []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        model.logprobs(queries, fresh=True)
        plain.append(time.perf_counter() - begin)
        with tempfile.TemporaryDirectory() as nothing_known:
            os.environ["CONVICTION_CACHE"] = nothing_known
            begin = time.perf_counter()
            report = audit(training_data, model=model, select=["PD4", "PD501"])
            audited.append(time.perf_counter() - begin)
        print(f"scoring pass {plain[-1]:.1f} s, audit {audited[-1]:.1f} s", flush=True)
    ratios = [a / p for a, p in zip(audited, plain, strict=True)]
    return {
        "data": name,
        "pairs": len(queries),
        "rules": report.checked,
        "scoring_pass_seconds": [round(s, 2) for s in plain],
        "audit_seconds": [round(s, 2) for s in audited],
        "ratio_median": round(statistics.median(ratios), 3),
        "ratio_worst": round(max(ratios), 3),
    }


def main() -> None:
    save("audit", {"without_model": without_model(), "with_model": with_model()})


if __name__ == "__main__":
    main()
