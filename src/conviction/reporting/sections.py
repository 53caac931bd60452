"""The parts of a page: tables and sentences out of a run folder, as the template shows them. Pure functions."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from conviction.probing.records import Sample, Scorecard
from conviction.reporting.forecast_words import farthest_setting, settings_table, step_table
from conviction.reporting.forecast_words import paragraphs as forecast_paragraphs
from conviction.reporting.outcome_words import outcome_lines
from conviction.reporting.run_folder import ArmFolder, RunFolder
from conviction.reporting.scorecard_words import paragraphs as scorecard_paragraphs
from conviction.reporting.words import OUTCOMES, arm_state, cells, header, plain_parts, reasons
from conviction.studies.records import Study
from conviction.studies.tuning_records import Trial, Tuning
from conviction.training.guard import summarize_warnings

STRIPS = 2  # questions that are shown token by token
FIRST, SHOWN = 2, 4  # answers that are shown before and after: at once, and at all
FAINTEST = -8.0  # log-prob of a token that is shown darkest


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of the page; the first cell of a row is its header."""

    caption: str
    header: Sequence[str]
    body: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One way to choose rows of the main table: those that have ``number`` among their groups."""

    number: int
    label: str


@dataclass(frozen=True, kw_only=True)
class MainTable:
    """The table of all arms, and what it can be filtered by without a script.

    groups  of each row: the numbers of the choices that show it
    """

    table: Table
    choices: Sequence[Choice]
    groups: Sequence[Sequence[int]]


def main_table(run: RunFolder, study: Study) -> MainTable:
    """One row an arm; rows can be chosen by verdict and by whether training steps were taken."""
    named = [(arm_state(one.arm), _how(one)) for one in run.arms if one.arm is not None]
    labels = list(dict.fromkeys([*(state for state, _ in named), *(how for _, how in named)]))
    return MainTable(
        table=Table(caption="All arms", header=header(), body=[cells(arm) for arm in study.arms]),
        choices=[Choice(number=n, label=label) for n, label in enumerate(labels)],
        groups=[[labels.index(state), labels.index(how)] for state, how in named],
    )


def _how(one: ArmFolder) -> str:
    if one.outcome is None:
        return "not applied"
    return "trained" if one.outcome.training is not None else "not trained"


def filter_rules(main: MainTable | None) -> str:
    """The style that hides rows which are not chosen, and columns that are switched off; numbers alone go into it."""
    if main is None:
        return ""
    rows = [
        f"#comparison:has(#show-{choice.number}:checked) tbody tr:not(.group-{choice.number}){{display:none}}"
        for choice in main.choices
    ]
    columns = [
        f"#comparison:has(#column-{number}:not(:checked)) .column-{number}{{display:none}}"
        for number in range(1, len(main.table.header))
    ]
    return "".join([*rows, *columns])


def bias_rows(card: Scorecard) -> tuple[list[str], list[list[str]]]:
    """Titles and rows: every question, with log-probs and gaps per token."""
    sides = list(card.rows[0].logp_mean) if card.rows else []
    titles = ["question", *sides, "gap", "PMI gap", "conditional gap", "winner"]
    body = [
        [
            row.question,
            *(f"{row.logp_mean[side]:.3f}" for side in sides),
            f"{row.gap_nats:+.3f}",
            f"{row.pmi_gap_nats:+.3f}",
            "—" if row.conditional_gap_nats is None else f"{row.conditional_gap_nats:+.3f}",
            row.winner,
        ]
        for row in card.rows
    ]
    return titles, body


def bias_section(card: Scorecard) -> dict[str, Any]:
    """Where the untouched model stands."""
    titles, body = bias_rows(card)
    shown_elsewhere = {card.summary.verdict, "Greedy answers", "Warnings"}
    (_, statistics), *others = scorecard_paragraphs(card)
    return {
        "verdict": card.summary.verdict,
        "warnings": card.warnings,
        "table": Table(caption="Every question", header=titles, body=body),
        "paragraphs": [("Statistics", statistics), *(part for part in others if part[0] not in shown_elsewhere)],
        "strips": _strips(card),
    }


def _strips(card: Scorecard) -> list[dict[str, Any]]:
    """The first questions' answers, token by token."""
    samples = {s.id: s for s in card.evidence}
    strips = []
    for row in [row for row in card.rows if row.role == "target"][:STRIPS]:
        answers = [
            {"side": side, "mean": f"{row.logp_mean[side]:.3f} nats per token", "tokens": _tokens(samples[name])}
            for side, name in row.samples.items()
            if name in samples and samples[name].pieces and samples[name].logprobs
        ]
        if answers:
            strips.append({"question": row.question, "answers": answers})
    return strips


def _tokens(sample: Sample) -> list[dict[str, str]]:
    return [
        {"text": text, "nats": f"{value:.2f}", "heat": f"{10 * min(1.0, max(0.0, value / FAINTEST)):.0f}"}
        for text, value in zip(sample.pieces, sample.logprobs, strict=True)
    ]


def controls_table(study: Study) -> Table | None:
    """What the metrics' positive controls did."""
    titles = ["metric", "readable?", "form of question", "in words", "measured by"]
    body = [[c.metric, c.outcome, c.form or "", c.text, ", ".join(c.measured_by)] for c in study.controls]
    return Table(caption="Positive controls", header=titles, body=body) if body else None


def arm_section(run: RunFolder, arm: ArmFolder, drawn: Callable[[str], Any]) -> dict[str, Any]:
    """One intervention: in a line, answers before and after, and the numbers behind."""
    judged = arm.arm.judgement if arm.arm is not None else None
    return {
        "name": arm.name,
        "verdict": judged.verdict if judged is not None else "",
        "words": judged.words if judged is not None else "",
        "plain": plain_parts(arm.arm) if arm.arm is not None else None,
        "failed": arm.arm is not None and judged is None,
        "reasons": [*(reasons(arm.arm) if arm.arm is not None else ()), *_warnings(arm)],
        "done": outcome_lines(arm.outcome) if arm.arm is None and arm.outcome is not None else [],
        "place": arm.arm.folder if arm.arm is not None else ".",
        "properties": _properties(arm),
        "tuning": _tuning(arm),
        "doses": drawn(f"{arm.name}-doses"),
        "training": drawn(f"{arm.name}-training"),
        "forecast": _forecast(arm),
        "expected": drawn(f"{arm.name}-expected"),
        "forecast_picture": drawn(f"{arm.name}-forecast"),
        "generations": (answers := _generations(run, arm))[:FIRST],
        "more_generations": answers[FIRST:],
        "settings": sorted((k, json.dumps(v, ensure_ascii=False)) for k, v in _settings(arm).items()),
    }


def _properties(arm: ArmFolder) -> Table | None:
    judged = arm.arm.judgement if arm.arm is not None else None
    if judged is None:
        return None
    titles = ["property", "good or bad", "value", "p (Holm)", "n", "in words", "measured by"]
    body = [
        [
            p.metric,
            OUTCOMES[p.outcome],
            "—" if p.value is None else f"{p.value:+.3f}{_span(p.low, p.high)} {p.unit}",
            "" if p.p_holm is None else f"{p.p_holm:.2g}",
            str(p.n or ""),
            p.text,
            ", ".join(p.measured_by),
        ]
        for p in judged.properties
    ]
    return Table(caption=f"Properties of {arm.name}", header=titles, body=body)


def _span(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" ({low:+.3f} to {high:+.3f})"


def _warnings(arm: ArmFolder) -> list[str]:
    """Of what the guard warned in the run, by sensor, value, limit and step."""
    return [f"The guard warned ({one.sensor}), {one.text}." for one in summarize_warnings(arm.steps)]


def _forecast(arm: ArmFolder) -> dict[str, Any] | None:
    if (forecast := arm.forecast) is None:
        return None
    pairs = [step_table(forecast.step_forecasts)] if forecast.step_forecasts else []
    pairs += [settings_table(forecast.settings)] if forecast.settings else []
    (_, why), *more = forecast_paragraphs(forecast)
    farthest = farthest_setting(forecast.settings)
    return {
        "verdict": f"Expected, before the first step: {forecast.verdict.kind}.",
        "why": [text for _, text in why],
        "paragraphs": [*([("Farthest", [farthest])] if farthest is not None else []), *more],
        "tables": [Table(caption=title, header=titles, body=body) for title, titles, body in pairs],
    }


def _tuning(arm: ArmFolder) -> dict[str, Any] | None:
    """How settings were chosen: a sentence, and one row for each that was tried or forecast."""
    tuning = arm.tuning
    if tuning is None:
        return None
    titles = ["settings", "expected", "reached", "after", "seconds", "why"]
    body = []
    for trial in tuning.trials:
        best = trial.best
        body.append(
            [
                trial.words,
                "—" if trial.forecast_nats is None else f"{trial.forecast_nats:+.2f}",
                "—" if best is None else f"{best.shift_nats:+.2f} ({best.low:+.2f} to {best.high:+.2f})",
                "—" if best is None or not trial.steps else f"{best.step} of {trial.steps} steps",
                f"{trial.seconds:.0f}",
                f"chosen: {trial.reason}" if trial.chosen else trial.reason,
            ]
        )
    where = f"Trained on {tuning.fitted} propositions of the train split, read on {tuning.asked} others of it."
    table = Table(caption=f"Settings of {arm.name} that were tried", header=titles, body=body) if body else None
    return {"summary": tuning.summary, "where": where, "map": _map(arm.name, tuning), "table": table}


def _map(name: str, tuning: Tuning) -> Table | None:
    """What every cell of a search over two settings came to; None for another search."""
    axes = list(dict.fromkeys(axis for trial in tuning.trials for axis in trial.options))
    values = [value for trial in tuning.trials for value in trial.options.values()]
    if len(axes) != 2 or len(values) != 2 * len(tuning.trials) or not all(isinstance(v, int | float) for v in values):
        return None
    across, down = sorted(axes, key=lambda axis: axis != "learning_rate")
    known = {(trial.options[down], trial.options[across]): trial for trial in tuning.trials}
    columns, rows = (sorted({trial.options[axis] for trial in tuning.trials}) for axis in (across, down))
    body = [[f"{row:g}", *(_cell(known.get((row, column))) for column in columns)] for row in rows]
    caption = f"Map of the search: what each setting of {name} moved, or is expected to"
    return Table(caption=caption, header=[f"{down} \\ {across}", *(f"{column:g}" for column in columns)], body=body)


def _cell(trial: Trial | None) -> str:
    if trial is None:
        return ""
    if not trial.made:
        return "not tried" if trial.forecast_nats is None else f"{trial.forecast_nats:+.2f} expected"
    reached = "no healthy dose" if trial.best is None else f"{trial.best.shift_nats:+.2f}"
    return f"{reached}, chosen" if trial.chosen else reached


def _generations(run: RunFolder, arm: ArmFolder) -> list[dict[str, str]]:
    questions = {row.item: row.question for row in run.before.rows} if run.before is not None else {}
    both = [item for item in run.written if item in arm.written][:SHOWN]
    pairs = [(item, run.written[item].text.strip(), arm.written[item].text.strip()) for item in both]
    return [
        {
            "question": questions.get(item, item),
            "before": before or "(nothing)",
            "after": "(word for word the same)" if after == before else after or "(nothing)",
        }
        for item, before, after in pairs
    ]


def _settings(arm: ArmFolder) -> dict[str, Any]:
    if arm.arm is not None:
        return arm.arm.settings
    return dict(arm.outcome.settings) if arm.outcome is not None else {}


def method_lines(run: RunFolder) -> list[tuple[str, str]]:
    """By which command, when, with what: (name, value)."""
    known: dict[str, Any] = {
        "command": " ".join(["conviction", *map(str, run.head.get("argv", [])[1:])]),
        "started": run.head.get("started"),
    }
    for record in (run.before, run.study):
        known |= record.provenance if record is not None else {}
    model = known.pop("model", None)
    known |= {f"model {key}": value for key, value in model.items()} if isinstance(model, dict) else {}
    return [
        (k, v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)) for k, v in known.items() if v is not None
    ]
