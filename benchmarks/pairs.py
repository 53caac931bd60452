"""Preference pairs of a given shape: questions of the obesity kit, answers cut from the bundled neutral text."""

from __future__ import annotations

import random
from typing import Any

from conviction import load_topic
from conviction.probing.health import neutral_text

# tokens of (chosen, rejected); with template and question a pair has some 60 more
SHAPES = {
    "seed": (810, 225),  # one answer 3.6 times the other, about 1100 tokens a pair
    "matched": (270, 270),  # about 600 tokens a pair
    "short": (60, 60),
}


def shaped_pairs(shape: str, n: int, tokenizer: Any, *, seed: int = 0) -> list[dict[str, str]]:
    """n rows of prompt, chosen and rejected; lengths vary by a tenth."""
    choose = random.Random(seed)
    paragraphs = neutral_text()
    questions = [item.question for item in load_topic("obesity").items]

    def text(tokens: int) -> str:
        wanted = round(tokens * choose.uniform(0.9, 1.1))
        joined = " ".join(choose.sample(paragraphs, min(len(paragraphs), wanted // 100 + 3)))
        return str(tokenizer.decode(tokenizer(joined, add_special_tokens=False).input_ids[:wanted])).strip()

    chosen, rejected = SHAPES[shape]
    return [
        {"prompt": questions[i % len(questions)], "chosen": text(chosen), "rejected": text(rejected)} for i in range(n)
    ]
