"""The model card of a saved model: what it was made from and how, with the numbers, for whoever finds the folder."""

from __future__ import annotations

import json
from typing import Any

from conviction.core.wording import inline
from conviction.interventions.records import Outcome

__all__ = ["model_card"]


def model_card(outcome: Outcome, *, base: str, adapter: bool) -> str:
    """``README.md`` with the hub's metadata.

    base     what the hub or others know the untouched model by: a hub id, else a path
    adapter  whether the folder holds a LoRA adapter, else whole weights
    """
    head = {"base_model": base, "tags": ["conviction", outcome.intervention]}
    head |= {"library_name": "peft"} if adapter else {"library_name": "transformers"}
    lines = ["---", *(_field(name, value) for name, value in head.items()), "---", ""]
    lines += [f"# {inline(outcome.intervention)} on {inline(base)}", ""]
    lines += [f"Verdict of the run: {inline(outcome.verdict)}.", ""]
    lines += ["| what | value |", "| --- | --- |"]
    lines += [f"| {inline(name)} | {_cell(value)} |" for name, value in _numbers(outcome)]
    lines += ["", "## Settings", "", "| field | value |", "| --- | --- |"]
    lines += [f"| {inline(name)} | {_cell(value)} |" for name, value in sorted(outcome.settings.items())]
    return "\n".join(lines) + "\n"


def _numbers(outcome: Outcome) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = [
        ("data", outcome.data.name),
        ("sha256 of the data", outcome.data.sha256),
        ("fingerprint of the untouched weights", outcome.base.get("fingerprint")),
    ]
    if outcome.data.examples is not None:
        rows.append(("examples", outcome.data.examples))
    if outcome.training is not None:
        rows.append(("steps", f"{outcome.training.steps} of {outcome.training.total_steps}"))
        rows.append(("tokens", outcome.training.tokens))
    if outcome.guard_stop is not None:
        rows.append(("stopped by the guard", outcome.guard_stop.text))
    return [*rows, *outcome.report]


def _field(name: str, value: Any) -> str:
    return f"{name}: {json.dumps(value, ensure_ascii=False)}"  # JSON is YAML


def _cell(value: Any) -> str:
    """A foreign text in one cell of a table."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return inline(text)
