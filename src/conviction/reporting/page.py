"""A run folder as one page that works offline: ``report(folder)``.

The page is a function of the folder: built twice, it is the same bytes. It holds
no script but the data, asks no network, and everything that a model or a topic
wrote is escaped. Its policy lets the browser apply the page's own style, and
nothing else: what was not escaped would not run, load or send anything.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from conviction.core.charts import PAGE, png, svg
from conviction.core.names import file_name, inside
from conviction.core.storage import user_path, write_atomic
from conviction.core.wording import inline, printable, printable_json, printable_lines
from conviction.errors import InputError, RunError
from conviction.forecasting.charts import agreement_chart
from conviction.interventions.charts import training_chart
from conviction.probing.charts import bias_chart
from conviction.probing.records import Sample, Scorecard
from conviction.reporting.run_folder import ArmFolder, RunFolder, read_run
from conviction.reporting.words import (
    audit_scope,
    cells,
    control_lines,
    header,
    legend,
    markdown,
    reasons,
    sentence,
)
from conviction.studies.charts import comparison_chart, dose_chart
from conviction.training.guard import summarize_warnings

STRIPS = 2  # questions that are shown token by token
SHOWN = 4  # answers that are shown before and after
FAINTEST = -8.0  # log-prob of a token that is shown darkest


def report(run: str | Path, *, pictures: bool = False, log: Callable[[str], None] = lambda _: None) -> Path:
    """Write ``report.html`` into a run folder; with ``pictures`` also its charts as PNG into ``pictures/``.

    Raises RunError for a folder that is no run, or one of another schema version. A file in it that is
    damaged is named on the page, and to ``log``; the rest is shown.
    """
    folder = _folder(run)
    read = read_run(folder)
    for file, why in read.damaged:
        log(f"note: {printable(file)} could not be read: {why}")
    charts = _charts(read)
    page = folder / "report.html"
    write_atomic(page, _html(read, charts))
    if pictures:
        place = inside(folder, "pictures", "the folder of the pictures", RunError)
        for name, (_, chart) in charts.items():
            write_atomic(place / f"{file_name(name)}.png", png(chart))
    return page


def report_markdown(run: str | Path) -> str:
    """The same in short, to be pasted into an issue."""
    read = read_run(_folder(run))
    parts = [f"## {inline(_title(read))}\n", *(f"{inline(line)}\n" for line in _summary(read))]
    if read.study is not None:
        parts += [markdown(header(), [cells(arm) for arm in read.study.arms]), f"{inline(legend())}\n"]
        parts += ["".join(f"- **{inline(a.name)}**: {inline(line)}\n" for a in read.study.arms for line in reasons(a))]
        controls = (f"positive control of {metric}: {line}" for metric, line in control_lines(read.study))
        parts += ["".join(f"- {inline(line)}\n" for line in controls)]
    if read.before is not None:
        parts.append(markdown(*_bias_rows(read.before)))
    if read.findings is not None:
        parts.append(f"Audit of the data: {inline(audit_scope(read.findings))}\n")
        lines = [f"{f.code} {f.name} ({f.level}): {f.message}" for f in read.findings.findings]
        parts += ["".join(f"- {inline(line)}\n" for line in lines)] if lines else []
    parts += [f"Could not be read: {inline(file)} ({inline(why)})\n" for file, why in read.damaged]
    return "\n".join(parts)


def _folder(run: Any) -> Path:
    if not isinstance(run, str | Path):
        raise InputError(f"run is {run!r}", hint="give a run folder, as a str or a Path")
    return user_path(run)


def _html(run: RunFolder, charts: dict[str, tuple[str, Any]]) -> str:
    from jinja2 import Environment
    from markupsafe import Markup

    def drawn(name: str) -> Any:
        return Markup(svg(charts[name][1], charts[name][0])) if name in charts else None  # noqa: S704  our own picture

    place = files("conviction.reporting")
    style = place.joinpath("page.css").read_text(encoding="utf-8")
    # What reverses the order of text, or no encoding knows, is shown as an escape wherever a text is put in.
    show = Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda v: printable_lines(v) if type(v) is str else v,
    )
    template = show.from_string(place.joinpath("page.html.j2").read_text(encoding="utf-8"))
    head, before, study = run.head, run.before, run.study
    return template.render(
        style=Markup(style),  # noqa: S704  our own file
        style_hash=f"sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}",
        title=_title(run),
        kind=head.get("verb", "run"),
        topic=head.get("topic", ""),
        summary=_summary(run),
        damaged=run.damaged,
        table=study and {"header": header(), "body": [cells(arm) for arm in study.arms], "legend": legend()},
        pictures={name: drawn(name) for name in ("comparison", "bias")},
        controls=study.controls if study is not None else (),
        bias=_bias(before) if before is not None else None,
        strips=_strips(before) if before is not None else [],
        findings=None if run.findings is None else run.findings.findings,
        audit_scope="" if run.findings is None else audit_scope(run.findings),
        arms=[_arm(run, arm, drawn) for arm in run.arms],
        method=_method(run),
        data=Markup(_json(run)),  # noqa: S704  escaped there
    )


def _title(run: RunFolder) -> str:
    model = run.study.model if run.study is not None else run.before.model if run.before is not None else ""
    topic = run.head.get("topic", "")
    return f"{model} on {topic}" if model else f"{run.head.get('verb', 'run')} of {topic}"


def _summary(run: RunFolder) -> list[str]:
    lines = [sentence(run.study)] if run.study is not None else []
    if run.before is not None:
        lines.append(f"Before: {run.before.summary.verdict}")
    elif run.study is not None:
        lines.append(f"Before: {run.study.verdict}")
    alone = [arm for arm in run.arms if arm.arm is None]
    lines += [f"{arm.name}: {arm.outcome.verdict}" for arm in alone if arm.outcome is not None]
    if run.head.get("status") != "done":
        lines.append(f"Not all of it was finished (status of the run: {run.head.get('status')}). What was is shown.")
    return lines


def _charts(run: RunFolder) -> dict[str, tuple[str, Any]]:
    """Name → (what it shows, chart)."""
    charts: dict[str, tuple[str, Any]] = {}
    if run.study is not None and (chart := comparison_chart(run.study, PAGE)) is not None:
        charts["comparison"] = (
            f"How far each intervention moved the model towards {run.study.target}, and what it kept",
            chart,
        )
    if run.before is not None:
        charts["bias"] = (f"Gap of every question towards {run.before.target}", bias_chart(run.before, PAGE))
    for arm in run.arms:
        stop = arm.outcome.guard_stop if arm.outcome is not None else None
        if (chart := training_chart(arm.steps, stop.step if stop is not None else None, PAGE)) is not None:
            charts[f"{arm.name}-training"] = (f"Training curves of {arm.name}", chart)
        if arm.tuning is not None and (chart := dose_chart(arm.tuning, PAGE)) is not None:
            charts[f"{arm.name}-doses"] = (f"Shift along the runs that settings of {arm.name} were searched by", chart)
        if (chart := agreement_chart(_moved(run, arm), PAGE)) is not None:
            charts[f"{arm.name}-forecast"] = (f"Expected and real movement under {arm.name}", chart)
    return charts


def _moved(run: RunFolder, arm: ArmFolder) -> list[tuple[float, float]]:
    """(expected, real) movement of every test question that a forecast was made for."""
    if arm.forecast is None or run.before is None or (arm.arm and arm.arm.guard_stop):
        return []  # a run that was stopped left the model of an earlier step
    start = {row.item: row.gap_nats for row in run.before.rows}
    return [
        (o.gap_nats - o.start_nats, arm.gaps[o.id] - start[o.id])
        for o in arm.forecast.pair_forecasts
        if o.counts and o.id in arm.gaps and o.id in start
    ]


def _bias_rows(card: Scorecard) -> tuple[list[str], list[list[str]]]:
    sides = list(card.rows[0].logp_mean) if card.rows else []
    header = ["question", *sides, "gap", "PMI gap", "conditional gap", "winner"]
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
    return header, body


def _bias(card: Scorecard) -> dict[str, Any]:
    header, body = _bias_rows(card)
    return {"verdict": card.summary.verdict, "warnings": card.warnings, "header": header, "body": body}


def _strips(card: Scorecard) -> list[dict[str, Any]]:
    """The first questions' answers, token by token."""
    samples = {s.id: s for s in card.evidence}
    strips = []
    for row in [row for row in card.rows if row.role == "target"][:STRIPS]:
        answers = [
            {"side": side, "mean": f"{row.logp_mean[side]:.3f} nats per token", "tokens": _tokens(samples[name])}
            for side, name in row.samples.items()
            if name in samples and samples[name].pieces
        ]
        if answers:
            strips.append({"question": row.question, "answers": answers})
    return strips


def _tokens(sample: Sample) -> list[dict[str, str]]:
    return [
        {"text": text, "nats": f"{value:.2f}", "heat": f"{10 * min(1.0, max(0.0, value / FAINTEST)):.0f}"}
        for text, value in zip(sample.pieces, sample.logprobs, strict=True)
    ]


def _arm(run: RunFolder, arm: ArmFolder, drawn: Any) -> dict[str, Any]:
    judged = arm.arm.judgement if arm.arm is not None else None
    return {
        "name": arm.name,
        "verdict": judged.verdict if judged is not None else "",
        "words": judged.words if judged is not None else "",
        "reasons": [*_reasons(arm), *_warnings(arm)],
        "place": arm.arm.folder if arm.arm is not None else ".",
        "properties": [
            {
                "metric": p.metric,
                "outcome": p.outcome,
                "value": "—" if p.value is None else f"{p.value:+.3f}{_span(p.low, p.high)} {p.unit}",
                "p": "" if p.p_holm is None else f"{p.p_holm:.2g}",
                "n": p.n or "",
                "text": p.text,
                "measured_by": ", ".join(p.measured_by),
            }
            for p in (judged.properties if judged is not None else ())
        ],
        "tuning": _tuning(arm),
        "doses": drawn(f"{arm.name}-doses"),
        "training": drawn(f"{arm.name}-training"),
        "forecast": _forecast(arm),
        "forecast_picture": drawn(f"{arm.name}-forecast"),
        "generations": _generations(run, arm),
        "settings": sorted((k, json.dumps(v, ensure_ascii=False)) for k, v in _settings(arm).items()),
    }


def _reasons(arm: ArmFolder) -> list[str]:
    if arm.arm is not None:
        return reasons(arm.arm)
    return [": ".join(map(str, line)) for line in (arm.outcome.report if arm.outcome is not None else ())]


def _warnings(arm: ArmFolder) -> list[str]:
    """Of what the guard warned in the run, by sensor, value, limit and step."""
    return [f"The guard warned ({one.sensor}), {one.text}." for one in summarize_warnings(arm.steps)]


def _span(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" ({low:+.3f} to {high:+.3f})"


def _forecast(arm: ArmFolder) -> list[str]:
    if arm.forecast is None:
        return []
    return [f"Expected, before the first step: {arm.forecast.verdict.kind}.", *arm.forecast.verdict.reasons]


def _tuning(arm: ArmFolder) -> dict[str, Any] | None:
    """How settings were chosen: a sentence, and one row for each that was tried or forecast."""
    tuning = arm.tuning
    if tuning is None:
        return None
    header = ["settings", "expected", "reached", "after", "seconds", "why"]
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
    return {"summary": tuning.summary, "where": where, "header": header, "body": body}


def _generations(run: RunFolder, arm: ArmFolder) -> list[dict[str, str]]:
    questions = {row.item: row.question for row in run.before.rows} if run.before is not None else {}
    both = [item for item in run.written if item in arm.written][:SHOWN]
    return [
        {
            "question": questions.get(item, item),
            "before": run.written[item].text.strip() or "(nothing)",
            "after": arm.written[item].text.strip() or "(nothing)",
        }
        for item in both
    ]


def _settings(arm: ArmFolder) -> dict[str, Any]:
    if arm.arm is not None:
        return arm.arm.settings
    return dict(arm.outcome.settings) if arm.outcome is not None else {}


def _method(run: RunFolder) -> list[tuple[str, str]]:
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


def _json(run: RunFolder) -> str:
    """A copy for programs. ``<`` is written so that no text can end the element."""
    data = {
        "run": run.head,
        "before": run.before.model_dump(mode="json") if run.before is not None else None,
        "findings": run.findings.model_dump(mode="json") if run.findings is not None else None,
        "study": run.study.model_dump(mode="json") if run.study is not None else None,
    }
    return printable_json(json.dumps(data, ensure_ascii=False)).replace("<", "\\u003c")
