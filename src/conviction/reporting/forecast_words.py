"""A forecast in words and tables: what the terminal, Markdown and the page say alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from conviction.core.wording import percent, settings_in_words
from conviction.forecasting.records import WRONG, FlipCost, Forecast, StepForecast, SweepPoint, wrong_by

SHOWN = 6  # steps

Lines = list[tuple[str, str]]
Table = tuple[str, list[str], list[list[str]]]
"""Title, titles of the columns, rows."""


def paragraphs(forecast: Forecast) -> Iterator[tuple[str, Lines]]:
    """Why the verdict is what it is, and how far to trust it: (title, lines)."""
    yield "Why", [("", reason) for reason in forecast.verdict.reasons]
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


def step_table(steps: Sequence[StepForecast]) -> Table:
    """The simulated run at some of its steps."""
    last = len(steps) - 1
    kept = [steps[round(k * last / (SHOWN - 1))] for k in range(SHOWN)] if len(steps) > SHOWN else steps
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
    return "Expected movement in nats (+ chosen, − rejected); test gap and neutral text per token", header, body


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:+.{digits}f}"


def settings_table(settings: Sequence[SweepPoint]) -> Table:
    """Other settings: a map where two options were swept, a list otherwise."""
    names = list(dict.fromkeys(name for s in settings for name in s.options))
    title = f"Expected flips of test pairs {WRONG} (!: the guard stops it, ~: near a limit or too far beyond the pilot)"
    if len(names) == 2:
        across, down = sorted(names, key=lambda n: n != "learning_rate")
        columns = _values(settings, across)
        known = {(str(s.options[down]), str(s.options[across])): _cell(s) for s in settings}
        body = [[_told(row), *(known.get((str(row), str(c)), "") for c in columns)] for row in _values(settings, down)]
        return title, [f"{down} \\ {across}", *map(_told, columns)], body
    return (
        title,
        ["setting", "flips"],
        [[", ".join(f"{k}={_told(v)}" for k, v in s.options.items()), _cell(s)] for s in settings],
    )


def farthest_setting(settings: Sequence[SweepPoint]) -> tuple[str, str] | None:
    """The setting that is expected to move the test questions farthest before the guard would stop it, and how far."""
    known = [(s.reachable_nats, s) for s in settings if s.reachable_nats is not None]
    if len(known) < 2:
        return None
    nats, best = max(known, key=lambda pair: pair[0])
    return settings_in_words(best.options), f"{nats:+.2f} nats per token expected"


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
