"""What was foreseen against what happened, for a run folder that holds both."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from conviction.core.forecast import Forecast, ForecastScore, Outlook
from conviction.core.forecast_score import Pair, score_forecast
from conviction.core.protocols import LanguageModel, Message, Progress, Query
from conviction.core.run import Run
from conviction.core.storage import storage_errors, write_atomic
from conviction.errors import RunError

__all__ = ["compare_run"]


def compare_run(
    folder: Path,
    load: Callable[[str], LanguageModel],
    *,
    base: str | None = None,
    into: Path | None = None,
    progress: Callable[[str], Progress] | None = None,
) -> tuple[Forecast, ForecastScore]:
    """Ask the untouched and the trained model the forecast's questions; writes ``comparison.json``.

    load  gives a model by name, folder or id; base: what to load the untouched model by, else the forecast's own name
    into  the folder to write into; None: the run's own

    Raises RunError for a folder without a forecast, or whose training has not ended.
    """
    forecast = Run(folder).thaw()
    outcome = _outcome(folder)
    trip = outcome["trip"]
    asked = [o for o in forecast.outlooks if o.counts]
    before = _ask(load(base or forecast.model), asked, progress and progress("asking the untouched model"))
    after = None
    if trip is None:
        after = _ask(load(str(folder / "model")), asked, progress and progress("asking the trained model"))
    score = score_forecast(forecast, before, after, trip=trip and trip["step"])
    write_atomic((into or folder) / "comparison.json", score.model_dump_json(indent=1) + "\n")
    return forecast, score


def _outcome(folder: Path) -> dict[str, Any]:
    path = folder / "training.json"
    if not path.exists():
        raise RunError(f"{folder} has not been trained to its end", hint="run `conviction apply` with this --run again")
    with storage_errors(f"reading {path}"):
        text = path.read_text(encoding="utf-8")
    try:
        found: dict[str, Any] = json.loads(text)["outcome"]
    except (ValueError, KeyError) as error:
        raise RunError(f"{path} is damaged", hint="the run has to be made again") from error
    return found


def _ask(model: LanguageModel, asked: Sequence[Outlook], progress: Progress | None) -> dict[str, Pair]:
    questions = [o.question for o in asked if o.question is not None]
    queries = [
        Query(tuple(Message(role, text) for role, text in q.turns), (q.wanted, q.other))  # type: ignore[arg-type]
        for q in questions
    ]
    found = model.logprobs(queries, progress=progress)
    return {o.id: (wanted, other) for o, (wanted, other) in zip(asked, found, strict=True)}
