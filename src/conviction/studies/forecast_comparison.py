"""What was forecast against what happened, for a run folder that holds both."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from conviction.core.context import RunContext
from conviction.core.protocols import LanguageModel, Message, Progress, Query
from conviction.core.run import Run
from conviction.errors import RunError
from conviction.forecasting.records import Forecast, ForecastScore, PairForecast
from conviction.forecasting.score import ScoredPair, score_forecast
from conviction.interventions.records import Outcome
from conviction.models.fetching import named_in


def compare_with_forecast(
    run: Run, load: Callable[[str], LanguageModel], *, base: str | None = None, ctx: RunContext | None = None
) -> ForecastScore:
    """Ask the untouched and the changed model the forecast's questions.

    load  gives a model by name, folder or id; base: what to load the untouched model by, else the forecast's own name

    Raises RunError for a folder without a forecast, or whose training has not ended.
    """
    ctx = ctx or RunContext()
    forecast = run.load_forecast(Forecast)
    if not run.has("outcome"):
        raise RunError(
            f"{run.folder} has not been trained to its end", hint="run `conviction apply` with this --run again"
        )
    outcome = run.load("outcome", Outcome)
    outcome.steps_in(run, ctx.log)
    stop = outcome.guard_stop
    asked = [o for o in forecast.pair_forecasts if o.counts]
    if base is not None:
        untouched = load(base)
    else:
        with named_in(f"{run.folder / 'forecast.json'}", consent="give --model NAME (in Python model=)"):
            untouched = load(forecast.model)
    if outcome.has_other_weights_than(untouched):
        raise RunError(
            f"{run.folder} changed {outcome.base.get('id')}, and {untouched.id} has other weights",
            hint="give --model the model that it was applied to",
        )
    before = _ask(untouched, asked, ctx.progress("asking the untouched model"))
    after = None
    if stop is None:
        after = _ask(load(run.changed_model), asked, ctx.progress("asking the trained model"))
    return score_forecast(forecast, before, after, guard_stop=stop.step if stop is not None else None)


def _ask(model: LanguageModel, asked: Sequence[PairForecast], progress: Progress | None) -> dict[str, ScoredPair]:
    questions = [o.question for o in asked if o.question is not None]
    queries = [Query(tuple(Message(role, text) for role, text in q.turns), (q.wanted, q.other)) for q in questions]
    scores = model.logprobs(queries, progress=progress)
    return {o.id: (wanted, other) for o, (wanted, other) in zip(asked, scores, strict=True)}
