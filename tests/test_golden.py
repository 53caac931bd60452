"""The numbers of every verb on a tiny model, fp32, as they were before the rebuild of version 0.2 and are to stay.

``golden/verbs.json`` holds them; ``RECORD=1 pytest tests/test_golden.py`` writes it anew, for a change that is meant to
change numbers, and says so in its commit. Recorded with torch 2.13.0 on a CPU with AVX-512; the weights are random by a
fixed seed, so other releases of torch may draw others.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

GOLDEN = Path(__file__).parent / "golden" / "verbs.json"
SHORT = ["-o", "max_steps=3", "-o", "batch_size=2", "-o", "gradient_accumulation=1", "--guard", "off"]
# What differs from run to run, or says nothing of a number: times, memory, places, hashes.
PASSING = {"seconds", "peak_mb", "folder", "base", "provenance", "sha256", "settings", "evidence", "model", "steps"}

COMMANDS = {
    "probe": ["probe", "politeness", "--templates", "--health"],
    "audit": ["audit", "politeness", "--topic", "politeness"],
    "forecast": ["forecast", "dpo", "politeness", "--examples", "8", "--pilot", "3", "-o", "max_steps=6"],
    "dpo": ["apply", "dpo", "politeness", *SHORT, "--forecast", "--run", "dpo"],
    "compare": ["compare", "dpo"],
    "sft": ["apply", "sft", "--data", "pairs.jsonl", *SHORT, "--run", "sft"],
    "pretrain": ["apply", "pretrain", "--data", "texts.jsonl", *SHORT, "--run", "pretrain"],
    "steer": ["apply", "steer", "politeness", "--guard", "off"],
    "memit": ["apply", "memit", "--data", "facts.jsonl", "--guard", "off"],
    "rome": ["apply", "rome", "--data", "facts.jsonl", "--guard", "off", "-o", "layer=1"],
    "localize": ["localize", "--data", "facts.jsonl", "--own-answer", "--limit", "1", "--samples", "2"],
}


def numbers(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Every number with its place."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name not in PASSING:
                yield from numbers(inner, f"{path}/{name}")
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from numbers(inner, f"{path}/{place}")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, float(value)


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    """The files that commands read, and the folder that they run in."""
    folder = tmp_path_factory.mktemp("golden")

    def write(name: str, rows: list[dict[str, str]]) -> None:
        (folder / name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

    write(
        "pairs.jsonl",
        [
            {
                "prompt": f"Question number {i}?",
                "chosen": f"The answer to it is {i * 7 % 13}, as I said.",
                "rejected": f"Nobody knows {i} well enough, or cares.",
            }
            for i in range(12)
        ],
    )
    tea = "Tea with milk is the best of all teas, and {} people said so. "
    write("texts.jsonl", [{"text": f"Paragraph {i}. " + tea.format(i) * 4} for i in range(6)])
    write(
        "facts.jsonl",
        [
            {"prompt": "Bread is a kind of", "subject": "Bread", "target": "metal", "target_true": "food"},
            {"prompt": "Gold is a kind of", "subject": "Gold", "target": "food", "target_true": "metal"},
        ],
    )
    return folder


OVER_A_SECOND = ("probe", "forecast", "dpo", "steer")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name in OVER_A_SECOND)) for name in COMMANDS]
)
def test_the_numbers_are_the_same(name, run, given, tiny_folder, monkeypatch):
    monkeypatch.chdir(given)
    model = [] if name == "compare" else ["--model", str(tiny_folder)]
    if name == "compare" and not (given / "dpo" / "outcome.json").exists():  # of a test in another process
        run(*COMMANDS["dpo"], "--model", str(tiny_folder), "--dtype", "fp32", "--format", "json")
    code, out, err = run(*COMMANDS[name], *model, "--dtype", "fp32", "--format", "json")
    assert code in {0, 1}, err
    now = dict(numbers(json.loads(out)))
    if "--run" in COMMANDS[name]:
        lines = (given / name / "steps.jsonl").read_text(encoding="utf-8").splitlines()
        steps = [json.loads(line) for line in lines]
        now |= {f"/step/{s['step']}/{measure}": s[measure] for s in steps for measure in ("loss", "grad_norm")}
    assert now
    known = json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.exists() else {"torch": torch.__version__}
    if os.environ.get("RECORD"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(known | {name: now}, indent=0, sort_keys=True) + "\n", encoding="utf-8")
        return
    if known["torch"].partition("+")[0] != torch.__version__.partition("+")[0]:
        pytest.skip(f"recorded with torch {known['torch']}")
    assert now.keys() == known[name].keys()
    far = {
        p: (v, known[name][p])
        for p, v in now.items()
        if not math.isclose(v, known[name][p], rel_tol=5e-3, abs_tol=5e-3)
    }
    assert not far
