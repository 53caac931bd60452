"""A forecast, and how it fared, as text, JSON or Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conviction.core.wording import inline, percent
from conviction.forecasting.records import WRONG
from conviction.reporting.forecast_words import farthest_setting, paragraphs, settings_table, step_table
from conviction.views.console import print_line, write, write_json
from conviction.views.text import Format, show, show_lines

if TYPE_CHECKING:
    from conviction.forecasting.records import Forecast, ForecastScore

__all__ = ["show_forecast", "show_score"]

COLOURS = {
    "trainable": "green",
    "only with these settings": "yellow",
    "not at these settings": "yellow",
    "nothing to flip": "cyan",
    "none": "cyan",
}


def show_forecast(forecast: Forecast, form: Format) -> None:
    """Print a forecast to stdout."""
    if form == "json":
        write_json(forecast.model_dump(mode="json"))
        return
    kind = forecast.verdict.kind
    headline = f"{forecast.intervention} on '{forecast.data}', {forecast.steps} steps: " + (
        "no verdict" if kind == "none" else kind
    )
    if form == "md":
        write(f"**{inline(headline)}**\n")
    else:
        print_line(headline, f"bold {COLOURS.get(kind, 'red')}", wrap=False)
    for title, lines in paragraphs(forecast):
        show_lines(title, lines, form)
    if forecast.step_forecasts:
        write("\n")
        show(*step_table(forecast.step_forecasts), form)
    if forecast.settings:
        write("\n")
        if farthest := farthest_setting(forecast.settings):
            show_lines("Farthest", [farthest], form)
        show(*settings_table(forecast.settings), form)


def show_score(forecast: Forecast, score: ForecastScore, form: Format) -> None:
    """Print how a forecast fared."""
    if form == "json":
        write_json(score.model_dump(mode="json"))
        return
    title = f"Forecast of {forecast.intervention} on '{forecast.data}' (verdict: {forecast.verdict.kind})"
    body = [["stopped at step", _step(score.predicted_stop_step), _step(score.guard_stop)]]
    if score.real_nats is not None and score.chosen_nats is not None and score.rejected_nats is not None:
        body += [
            ["gap moved, nats per token", f"{score.expected_nats:+.3f}", f"{score.real_nats:+.3f}"],
            ["wanted answers moved, nats", *(f"{v:+.1f}" for v in score.chosen_nats)],
            ["other answers moved, nats", *(f"{v:+.1f}" for v in score.rejected_nats)],
            [f"flips of {score.wrong} pairs {WRONG}", f"{score.expected_flips:.1f}", str(score.flips)],
        ]
    show(title, ["", "expected", "happened"], body, form)
    lines = [("pair by pair", f"Spearman {score.spearman:.2f} over {score.pairs} pairs")] if score.spearman else []
    if score.relative_error is not None:
        lines.append(("size", f"{percent(score.relative_error)} off"))
    if score.brier is not None and score.brier_constant is not None:
        lines.append(("flips", f"Brier {score.brier:.3f}; the best constant guess has {score.brier_constant:.3f}"))
    if score.stop_error is not None:
        lines.append(("stop", f"{percent(score.stop_error)} off"))
    if score.real_nats is None:
        lines.append(("", "the guard restored an earlier model: only the stop can be compared"))
    show_lines("", lines, form)


def _step(step: int | None) -> str:
    return "never" if step is None else str(step)
