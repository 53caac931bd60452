"""What to do next, in plain words: what every command ends with, and every page.

Pure functions of a result. Commands in them name what the user named: a topic, a model, a folder. Where these are not
known (a page does not know where it lies), capital letters stand for them.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from conviction.auditing.records import AuditReport
from conviction.core.statistics import ALPHA
from conviction.core.wording import printable, settings_in_words
from conviction.forecasting.records import Forecast, ForecastScore
from conviction.interventions.records import Outcome
from conviction.localization.records import Localization
from conviction.probing.records import Scorecard
from conviction.studies.records import DEPTHS, Study

Result = Scorecard | AuditReport | Forecast | Outcome | ForecastScore | Study | Localization


@dataclass(frozen=True, kw_only=True)
class Names:
    """What commands call things: the run folder, and the topic or the file of pairs that was given."""

    run: str = "RUN"
    topic: str | None = None
    data: str | None = None
    model: str | None = None

    @property
    def source(self) -> str:
        """The data of a training run, as ``apply`` and ``forecast`` take it."""
        return f"--data {_quoted(self.data)}" if self.data is not None else self.kit

    @property
    def kit(self) -> str:
        """The topic."""
        return "TOPIC" if self.topic is None else _quoted(self.topic)

    @property
    def on_model(self) -> str:
        """The option that names the model."""
        return "" if self.model is None else f" --model {_quoted(self.model)}"


def next_steps(result: Result, names: Names | None = None, *, forecast: bool = False) -> list[str]:
    """Sentences that say what to do after a result, the most useful first.

    forecast  of an outcome: whether a forecast was frozen with it, which it can be held against
    """
    known = names or Names()
    match result:
        case Scorecard():
            steps = _after_probe(result, known)
        case AuditReport():
            steps = _after_audit(result, known)
        case Forecast():
            steps = _after_forecast(result, known)
        case Outcome():
            steps = _after_apply(result, known, forecast=forecast)
        case ForecastScore():
            steps = _after_score(result, known)
        case Study():
            steps = _after_study(result, known)
        case Localization():
            steps = _after_localize(known)
    return steps


def _after_probe(card: Scorecard, names: Names) -> list[str]:
    summary, on = card.summary, names.on_model
    if summary.smallest_p >= ALPHA:
        return [
            f"{summary.n} propositions are too few for a verdict: ask all of them (without `--quick`), or write more "
            "into the topic.",
        ]
    audit = f"Look for faults in the training pairs: `conviction audit {names.kit}{on}`."
    forecast = f"See what training would do before you train: `conviction forecast dpo {names.kit}{on}`."
    study = f"Compare ways to move it: `conviction study {names.kit}{on}`."
    if summary.preferred_pole == card.target:
        asked = f"`conviction probe {names.kit}{on} --templates --forced-choice`"
        return ["It prefers the target already: there is nothing to move.", f"Ask in other forms to be sure: {asked}."]
    if summary.preferred_pole is None:
        return ["No preference is shown, so there may be none to turn round.", study, audit]
    return [audit, forecast, study]


def _after_audit(report: AuditReport, names: Names) -> list[str]:
    steps = []
    graver = [finding for finding in report.findings if finding.level != "note"]
    fixable = sorted({finding.code for finding in report.findings if finding.fixable})
    if fixable:
        steps.append(f"Write a cleaned copy: --fix repairs {', '.join(fixable)} in a copy.")
    if graver:
        rest = [finding.code for finding in graver if not finding.fixable]
        if rest:
            steps.append(f"Change the rows of {', '.join(dict.fromkeys(rest))} as each finding advises.")
    if report.findings:
        code = report.findings[0].code
        steps.append(f"Read more: `conviction rule {code}` explains a rule, --details shows all evidence.")
    if any("model" in why for why in report.not_run) and names.model is None:
        steps.append("Let the rules that need a model run, too: add --model.")
    if not graver:
        steps.append(
            f"See what training on these pairs would do: `conviction forecast dpo {names.source}{names.on_model}`."
        )
    return steps


def _after_forecast(forecast: Forecast, names: Names) -> list[str]:
    job = f"{forecast.intervention} {names.source}{names.on_model}"
    kind, steps = forecast.verdict.kind, [_sentence(line) for line in forecast.verdict.advice]
    if kind == "trainable":
        return [*steps, f"Train, and keep a forecast beside the run: `conviction apply {job} --forecast`."]
    if kind == "only with these settings":
        safe = [point for point in forecast.settings if point.safe and point.flips is not None]
        best = max(safe, key=lambda point: point.flips.expected if point.flips is not None else 0.0, default=None)
        options = "NAME=VALUE" if best is None else settings_in_words(best.options).replace(", ", " -o ")
        return [*steps, f"Train with settings that are expected to do: `conviction apply {job} -o {options}`."]
    if kind in {"none", "nothing to flip"}:
        return steps
    return [
        *steps,
        f"Search for settings: `conviction apply {job} --tune 20`.",
        f"Compare with methods that train nothing: `conviction study {names.kit}{names.on_model}`.",
    ]


def _after_apply(outcome: Outcome, names: Names, *, forecast: bool) -> list[str]:
    run, steps = _quoted(names.run), []
    if outcome.guard_stop is not None:
        kept = outcome.guard_stop.restored_step
        where = "the untouched one" if not kept else f"the one of step {kept}, the last healthy"
        steps.append(f"The guard stopped it; the model that was kept is {where}.")
        if outcome.training is not None:
            steps.append(
                f"Search for settings that stay healthy: `conviction apply {outcome.intervention} {names.source}"
                f"{names.on_model} --tune 20`."
            )
    if forecast:
        steps.append(f"Hold the forecast against what happened: `conviction compare {run}`.")
    steps += [
        f"Look at the changed model again: `conviction probe {names.kit} --model {_quoted(f'{names.run}/model')}`.",
        f"See how deep the change goes, beside another one: `conviction compare {run} ANOTHER_RUN`.",
    ]
    return steps


def _after_score(score: ForecastScore, names: Names) -> list[str]:
    steps = []
    if score.real_nats is None:
        steps.append("The guard stopped the run, so only the stop can be compared: train with gentler settings.")
    steps.append(
        f"See how deep the change goes, beside another one: `conviction compare {_quoted(names.run)} ANOTHER_RUN`."
    )
    return steps


def _after_study(study: Study, names: Names) -> list[str]:
    judged = [(arm, arm.judgement) for arm in study.arms if arm.judgement is not None]
    verdicts = {judgement.verdict for _, judgement in judged}
    steps = []
    if study.unfinished:
        missing = ", ".join(map(printable, study.unfinished))
        steps.append(
            f"Try the arms again that were not judged ({missing}): the same command with --run {_quoted(names.run)}."
        )
    useful = [(DEPTHS.index(j.verdict), j.change.value or 0.0, a) for a, j in judged
              if j.verdict in ("surface", "shallow", "deep") and j.change is not None]  # fmt: skip
    if useful:
        best = max(useful, key=lambda one: one[:2])[2]
        model = f"{best.applied_in or f'{names.run}/{best.folder}'}/model"
        steps.append(
            f"Try {printable(best.name)}, the deepest change that was not shown to do harm: "
            f"`conviction probe {names.kit} --model {_quoted(model)}`."
        )
    elif judged:
        steps.append("No arm is of use as it is.")
    if verdicts & {"none", "broken"}:
        steps.append(
            "Settings that do too little or too much are no verdict on a method: search for them with `--tune 20`, "
            "or for longer."
        )
    if "not shown" in verdicts:
        steps.append("Write more test propositions into the topic: the reasons say how many would do.")
    if any(judgement.ceiling is not None for _, judgement in judged):
        steps.append("Repeat it on a larger model (`--model`): on this one no deeper verdict can be read.")
    return steps


def _after_localize(names: Names) -> list[str]:
    edit = f"conviction apply memit {names.source}{names.on_model}"
    if names.data is None:
        edit = f"conviction study {names.kit}{names.on_model} --interventions rome,memit"
    return [
        "Tracing does not say which layer to edit (Hase et al. 2301.04213). Edit facts, and measure what that moves "
        f"and breaks: `{edit}`."
    ]


def _quoted(name: str) -> str:
    """A name as a shell takes it."""
    return shlex.quote(printable(name))


def _sentence(text: str) -> str:
    """A line of advice as a sentence; one that begins with a setting keeps its case."""
    start = text[:1] if "=" in text.partition(" ")[0] else text[:1].upper()
    return f"{start}{text[1:]}{'' if text.endswith(('.', '!', '?')) else '.'}"
