"""A forecast, and how it fared, as text, JSON or Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from conviction.core.wording import inline, percent, settings_in_words
from conviction.forecasting.records import WRONG, wrong_by
from conviction.views.console import print_line, write, write_json
from conviction.views.text import Format, show, show_lines

if TYPE_CHECKING:
    from collections.abc import Sequence

    from conviction.forecasting.records import FlipCost, Forecast, ForecastScore, StepForecast, SweepPoint

__all__ = ["show_forecast", "show_score"]

COLOURS = {
    "trainable": "green",
    "only with these settings": "yellow",
    "not at these settings": "yellow",
    "nothing to flip": "cyan",
    "none": "cyan",
}
SHOWN = 6  # moments

Lines = list[tuple[str, str]]


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
    for title, lines in _parts(forecast):
        show_lines(title, lines, form)
    if forecast.step_forecasts:
        write("\n")
        _show_moments(forecast.step_forecasts, form)
    if forecast.settings:
        write("\n")
        _show_settings(forecast.settings, form)


def _parts(forecast: Forecast) -> Iterator[tuple[str, Lines]]:
    verdict = forecast.verdict
    yield "Why", [("", reason) for reason in verdict.reasons]
    if verdict.advice:
        yield "What to do", [("", advice) for advice in verdict.advice]
    if forecast.cost is not None and forecast.cost.wrong:
        yield "What a flip costs", _cost_lines(forecast.cost)
    trust = list(_trust_lines(forecast))
    if trust:
        yield "How far to trust it", trust


def _cost_lines(cost: FlipCost) -> Lines:
    unit = "nats per token" if cost.per_token else "nats"

    def spread(name: str, digits: int) -> str:
        low, middle, high = (cost.quantiles[name][q] for q in ("0.05", "0.5", "0.95"))
        return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"

    lines = [
        (
            "to make up",
            f"{spread('c', 2 if cost.per_token else 1)} {unit}: median and 5-95 % "
            f"of {cost.wrong} training pairs {wrong_by(cost.per_token)}",
        ),
        ("margin", f"{spread('margin', 2)} at β = {cost.beta:g}; {cost.over} need more than {cost.cap:g}"),
        ("loss there", spread("loss", 2)),
        ("gradient left", f"{spread('left', 2)} of what it was at the start"),
    ]
    if cost.beta_for_half is not None and cost.beta_for_most is not None:
        lines.append(("β for a flip", f"{cost.beta_for_half:g} for half of them, {cost.beta_for_most:g} for 95 %"))
    return lines


def _trust_lines(forecast: Forecast) -> Iterator[tuple[str, str]]:
    pilot = forecast.pilot
    if pilot is not None:
        progress = ""
        if pilot.moved is not None and pilot.correlation is not None:
            progress = (
                f": trained pairs moved by {pilot.moved[0]:+.2f} nats, simulated {pilot.moved[1]:+.2f}, "
                f"pair by pair r = {pilot.correlation:.2f}"
            )
        yield "pilot", f"{pilot.steps} real steps at {pilot.learning_rate:.2g}, whose weights are not kept{progress}"
    if forecast.extrapolation is not None:
        yield (
            "distance",
            f"the run goes {forecast.extrapolation:.1f} times as far as the pilot (beyond 4 it is a guess)",
        )
    if forecast.guard_utilisation is not None:
        yield "guard", f"{percent(forecast.guard_utilisation)} of a limit of the guard is reached on the way"
    if forecast.sampling_error is not None:
        yield "sampling", f"sums over coordinates are off by {percent(forecast.sampling_error)}"
    if forecast.unsampled_examples:
        yield "unsampled", f"{forecast.unsampled_examples} trained examples have no gradient of their own"
    for line in forecast.unknown:
        yield "unknown", line
    for note in forecast.notes:
        yield "note", note
    yield "cost", ", ".join(f"{name} {seconds:.1f} s" for name, seconds in forecast.seconds.items())


def _show_moments(step_forecasts: Sequence[StepForecast], form: Format) -> None:
    kept = (
        [step_forecasts[round(k * (len(step_forecasts) - 1) / (SHOWN - 1))] for k in range(SHOWN)]
        if len(step_forecasts) > SHOWN
        else step_forecasts
    )
    header = ["step", "loss", "margin", "trained +", "trained −", "test +", "test −", "test gap", "neutral"]
    body = [
        [
            str(m.step),
            f"{m.loss:.2f}",
            _number(m.margin, 2),
            _number(m.train_chosen_nats, 1),
            _number(m.train_rejected_nats, 1),
            _number(m.test_chosen_nats, 1),
            _number(m.test_rejected_nats, 1),
            _number(m.test_gap_nats, 2),
            _number(m.neutral_nats, 3),
        ]
        for m in kept
    ]
    show("Expected movement in nats (+ chosen, − rejected); test gap and neutral text per token", header, body, form)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:+.{digits}f}"


def _show_settings(settings: Sequence[SweepPoint], form: Format) -> None:
    """A map where two options were swept, a list otherwise."""
    _show_best(settings, form)
    names = list(dict.fromkeys(name for s in settings for name in s.options))
    title = f"Expected flips of test pairs {WRONG} (!: the guard stops it, ~: near a limit or too far beyond the pilot)"
    if len(names) == 2:
        across, down = sorted(names, key=lambda n: n != "learning_rate")
        columns = _values(settings, across)
        known = {(str(s.options[down]), str(s.options[across])): _cell(s) for s in settings}
        body = [[_told(row), *(known.get((str(row), str(c)), "") for c in columns)] for row in _values(settings, down)]
        show(title, [f"{down} \\ {across}", *map(_told, columns)], body, form)
        return
    body = [[", ".join(f"{k}={_told(v)}" for k, v in s.options.items()), _cell(s)] for s in settings]
    show(title, ["setting", "flips"], body, form)


def _show_best(settings: Sequence[SweepPoint], form: Format) -> None:
    """The setting that is expected to move the test questions farthest before the guard would stop it."""
    known = [(s.reachable_nats, s) for s in settings if s.reachable_nats is not None]
    if len(known) > 1:
        nats, best = max(known, key=lambda pair: pair[0])
        show_lines("Farthest", [(settings_in_words(best.options), f"{nats:+.2f} nats per token expected")], form)


def _values(settings: Sequence[SweepPoint], name: str) -> list[Any]:
    values = list(dict.fromkeys(s.options[name] for s in settings))
    return sorted(values) if all(isinstance(v, int | float) for v in values) else values


def _told(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _cell(setting: SweepPoint) -> str:
    flips = setting.flips
    progress = f"{flips.expected:.1f}/{flips.wrong}" if flips is not None else _number(setting.margin, 2)
    if setting.predicted_stop is not None:
        return f"{progress} !{setting.predicted_stop.step}"
    return progress if setting.safe else f"{progress} ~"


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
