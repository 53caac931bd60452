"""Pairs to score: TruthfulQA where a copy lies beside the project, else items of our kits (same shape)."""

from __future__ import annotations

import csv
from pathlib import Path

from conviction import load_topic

TRUTHFULQA = Path(__file__).parents[2] / "shared" / "data" / "truthfulqa.csv"

Pair = tuple[str, str, str]
"""question, best answer, first incorrect answer"""


def pairs(n: int) -> tuple[str, list[Pair]]:
    """Name of the set, and its first n pairs."""
    if TRUTHFULQA.is_file():
        with TRUTHFULQA.open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        found = [(r["Question"], r["Best Answer"], r["Incorrect Answers"].split(";")[0].strip()) for r in rows]
        return "TruthfulQA", found[:n]
    items = [item for name in ("obesity", "politeness") for item in load_topic(name).items]
    return "built-in kits", [(i.question, *i.answers.values()) for i in items][:n]  # type: ignore[misc]


def context(n_tokens: int, tokenizer: object, skip: int = 0) -> str:
    """About n_tokens of the bundled neutral text, beginning with paragraph ``skip``."""
    from conviction.probing.health import neutral_text

    text = " ".join((neutral_text() * 2)[skip : skip + 4])
    ids = tokenizer(text, add_special_tokens=False).input_ids[:n_tokens]  # type: ignore[operator]
    return str(tokenizer.decode(ids)).strip()  # type: ignore[attr-defined]
