"""The experiment of the tutorial: the same prompts, with matched answers and with chosen answers 8.5 times as long.

::

    python docs/length_gap.py                          write matched.jsonl and long.jsonl
    python docs/length_gap.py runs/matched runs/long   measure what was trained on them, on held-out questions

``matched.jsonl`` holds the training pairs of the built-in topic `obesity`. In ``long.jsonl`` every chosen answer goes
on with sentences that an assistant might add to any answer, until it is 8.5 times as long as the rejected one.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean

from conviction import TrainingData, load_model, load_topic, probe

TIMES = 8.5
MORE = (
    "That is the short answer, and it helps to take it step by step.",
    "There are many things to consider here, and each of them deserves a closer look.",
    "First, it is worth being clear about what the question asks.",
    "Second, keep in mind that people differ, and that what works for one need not work for another.",
    "It is a good idea to write down what you notice from one week to the next.",
    "Small and steady changes are usually easier to keep than large and sudden ones.",
    "If you are unsure, a professional who knows your situation can give you advice.",
    "In summary, the points above give you a good place to start.",
    "I hope this helps, and please feel free to ask if you would like to know more.",
)


def write() -> None:
    """Both files, into the current folder."""
    matched, long = [], []
    for number, pair in enumerate(TrainingData.from_topic(load_topic("obesity")).pairs):
        row = {"prompt": pair.messages[-1].content, "chosen": pair.chosen, "rejected": pair.rejected}
        start = number % len(MORE)
        padding = " ".join(itertools.islice(itertools.cycle(MORE), start, start + 40))
        length = round(TIMES * len(pair.rejected)) - len(pair.chosen) - 1
        matched.append(row)
        long.append(row | {"chosen": f"{pair.chosen} {padding[:length].rpartition(' ')[0]}."})
    for name, rows in {"matched.jsonl": matched, "long.jsonl": long}.items():
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        times = mean(len(row["chosen"]) / len(row["rejected"]) for row in rows)
        print(f"{name}: {len(rows)} pairs, chosen answers {times:.1f} times as long as rejected ones")


def held_out_gaps(model: str) -> dict[str, float]:
    """Proposition of the test split → gap towards the target, nats per token."""
    gaps = defaultdict(list)
    for row in probe(load_model(model), load_topic("obesity")).rows:
        if row.split == "test":
            gaps[row.proposition].append(row.gap_nats)
    return {proposition: mean(values) for proposition, values in gaps.items()}


def measure(runs: list[str]) -> None:
    """How far each run moved the gap, and how many propositions it brought to the target's side."""
    base = json.loads(Path(runs[0], "outcome.json").read_text(encoding="utf-8"))["base"]["id"]
    before = held_out_gaps(base)
    print(f"{len(before)} held-out propositions, gap before: {mean(before.values()):+.2f} nats per token")
    for run in runs:
        last = json.loads(Path(run, "steps.jsonl").read_text(encoding="utf-8").splitlines()[-1])
        after = held_out_gaps(f"{run}/model")
        shift = mean(after[name] - gap for name, gap in before.items())
        flips = sum(after[name] > 0 >= gap for name, gap in before.items())
        print(f"{run}: last margin {last['margin']:.1f}; gap moved by {shift:+.2f}, {flips} flipped")


if __name__ == "__main__":
    measure(sys.argv[1:]) if sys.argv[1:] else write()
