"""PD105 prompt-echo: an answer that repeats the prompt

## What it does
Finds answers in which the user's last turn (of five words or more) stands word for word.

## Why it is bad
Nearly always a bug of the exporter: the prompt was left in the completion. The model
then learns to repeat questions, and all log-probabilities are dominated by a copy that
any model finds certain. On one side only, it makes the pairs separable at a glance.

## Example
    {"prompt": "How long should I boil an egg?", "chosen": "How long should I boil an egg? Ten minutes.", …}

## What to do
Cut the prompt off the answers.

## How the limit was set
Of 2,308 pairs of Anthropic's HH (harmless-base, test) 7 have it, where an answer quotes
what was asked; of TruthfulQA and the built-in kits none. Single rows are a note; from one
in a hundred on it is a warning.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conviction.auditing.row import AuditRow, normal, shown
from conviction.auditing.rule import Rule, each_row, place
from conviction.core.segmentation import word_count

MIN_WORDS = 5
COMMON = 0.01


def _look(row: AuditRow) -> Mapping[str, Any] | None:
    question = normal(row.question)
    if word_count(question) < MIN_WORDS:
        return None
    sides = [name for name, text in row.sides if len(text) >= len(question) and question in normal(text)]
    return {"where": place(sides), "prompt": shown(row.question)} if sides else None


MESSAGE = "{rows} ({share}) with the prompt in an answer ({places})"
RULE = Rule(
    code="PD105",
    name="prompt-echo",
    since="0.1.0",
    begin=each_row(_look, MESSAGE, "cut the prompt off the answers", common=COMMON),
)
