"""A forecast, and how it fared, as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from conviction.core.charts import ON_WHITE, WIDTH, Palette, altair

if TYPE_CHECKING:
    from conviction.forecasting.records import Forecast, ForecastScore

__all__ = ["agreement_chart", "expected_run_chart", "score_chart"]

CURVES = {
    "loss": "loss",
    "margin": "reward margin",
    "test_gap_nats": "gap of test questions, nats per token",
    "neutral_nats": "neutral text, nats per token",
}


def expected_run_chart(forecast: Forecast, palette: Palette = ON_WHITE) -> Any:
    """The simulated run, step by step: loss, margin, and what it moves; a line where the guard is expected to stop."""
    alt = altair()
    stop = forecast.predicted_stop.step if forecast.predicted_stop is not None else None
    panels = []
    for name, title in CURVES.items():
        rows = [{"step": s.step, "value": v} for s in forecast.step_forecasts if (v := getattr(s, name)) is not None]
        curve = (
            alt.Chart(alt.Data(values=rows))
            .mark_line(color=palette.towards)
            .encode(x=alt.X("step:Q", axis=alt.Axis(tickMinStep=1)), y=alt.Y("value:Q", title=title))
        )
        panels.append(alt.layer(curve, *_mark(stop, palette)).properties(width=WIDTH / 2 - 70, height=130))
    return alt.concat(*panels, columns=2)


def score_chart(score: ForecastScore) -> Any:
    """Expected beside real movement, nats; only the expected one where the guard stopped the run."""
    alt = altair()
    moved = {
        "gap, per token": (score.expected_nats, score.real_nats),
        "wanted answers": score.chosen_nats or (None, None),
        "other answers": score.rejected_nats or (None, None),
    }
    rows = [
        {"what": what, "which": which, "nats": value}
        for what, pair in moved.items()
        for which, value in zip(("expected", "real"), pair, strict=True)
        if value is not None
    ]
    colours = alt.Scale(domain=["expected", "real"], range=[ON_WHITE.faint, ON_WHITE.towards])
    return (
        alt.Chart(alt.Data(values=rows))
        .mark_bar()
        .encode(
            x=alt.X("nats:Q", title="moved, nats"),
            y=alt.Y("which:N", title=None),
            row=alt.Row("what:N", title=None, sort=list(moved)),
            color=alt.Color("which:N", scale=colours, legend=None),
        )
        .properties(width=WIDTH - 160)
    )


def agreement_chart(real: Sequence[tuple[float, float]], palette: Palette = ON_WHITE) -> Any | None:
    """(expected, real) movement of every question, nats per token; None without any."""
    if not real:
        return None
    alt = altair()
    end = max(abs(v) for pair in real for v in pair) * 1.05 or 1.0
    scale = alt.Scale(domain=[-end, end])
    points = (
        alt.Chart(alt.Data(values=[{"expected": a, "real": b} for a, b in real]))
        .mark_point(color=palette.towards, filled=True, opacity=0.8)
        .encode(
            x=alt.X("expected:Q", title="expected, nats per token", scale=scale),
            y=alt.Y("real:Q", title="real", scale=scale),
        )
    )
    same = (
        alt.Chart(alt.Data(values=[{"x": -end, "y": -end}, {"x": end, "y": end}]))
        .mark_line(color=palette.faint)
        .encode(x="x:Q", y="y:Q")
    )
    return alt.layer(same, points).properties(width=260, height=260)


def _mark(step: int | None, palette: Palette) -> list[Any]:
    alt = altair()
    rule = alt.Chart(alt.Data(values=[{"step": step}])).mark_rule(color=palette.away, strokeDash=[4, 3])
    return [rule.encode(x="step:Q")] if step else []
