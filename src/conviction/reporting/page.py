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
from itertools import pairwise
from pathlib import Path
from typing import Any

from conviction.core.charts import png
from conviction.core.names import file_name, inside
from conviction.core.storage import user_path, write_atomic
from conviction.core.wording import inline, printable, printable_json, printable_lines
from conviction.errors import InputError, RunError
from conviction.reporting.next_steps import Names, Result, next_steps
from conviction.reporting.pictures import Picture, pictures_of
from conviction.reporting.run_folder import RunFolder, read_run
from conviction.reporting.sections import (
    arm_section,
    bias_rows,
    bias_section,
    controls_table,
    filter_rules,
    main_table,
    method_lines,
)
from conviction.reporting.words import (
    audit_scope,
    cells,
    control_lines,
    header,
    legend,
    markdown,
    plain,
    reasons,
    sentence,
    units,
    verdict_legend,
)


def report(run: str | Path, *, pictures: bool = False, log: Callable[[str], None] = lambda _: None) -> Path:
    """Write ``report.html`` into a run folder; with ``pictures`` also its charts as PNG into ``pictures/``.

    Raises RunError for a folder that is no run, or one of another schema version. A file in it that is
    damaged is named on the page, and to ``log``; the rest is shown.
    """
    folder = _folder(run)
    read = read_run(folder)
    for file, why in read.damaged:
        log(f"note: {printable(file)} could not be read: {why}")
    charts = pictures_of(read)
    page = folder / "report.html"
    write_atomic(page, _html(read, charts))
    if pictures:
        place = inside(folder, "pictures", "the folder of the pictures", RunError)
        for name, picture in charts.items():
            write_atomic(place / f"{file_name(name)}.png", png(picture.chart))
    return page


def report_markdown(run: str | Path) -> str:
    """The same in short, to be pasted into an issue."""
    read = read_run(_folder(run))
    parts = [f"## {inline(_title(read))}\n", *(f"{inline(line)}\n" for line in _summary(read))]
    if read.study is not None:
        parts += [markdown(header(), [cells(arm) for arm in read.study.arms]), f"{inline(legend())}\n"]
        parts += ["".join(f"- **{inline(a.name)}** {inline(plain(a))}\n" for a in read.study.arms)]
        parts += ["".join(f"- **{inline(a.name)}**: {inline(line)}\n" for a in read.study.arms for line in reasons(a))]
        controls = (f"positive control of {metric}: {line}" for metric, line in control_lines(read.study))
        parts += ["".join(f"- {inline(line)}\n" for line in controls)]
    if read.before is not None:
        parts.append(markdown(*bias_rows(read.before)))
    if read.findings is not None:
        parts.append(f"Audit of the data: {inline(audit_scope(read.findings))}\n")
        lines = [f"{f.code} {f.name} ({f.level}): {f.message}" for f in read.findings.findings]
        parts += ["".join(f"- {inline(line)}\n" for line in lines)] if lines else []
    parts += [f"Could not be read: {inline(file)} ({inline(why)})\n" for file, why in read.damaged]
    if steps := _next(read):
        parts += ["What to do next:\n", "".join(f"- {inline(line)}\n" for line in steps)]
    return "\n".join(parts)


def _folder(run: Any) -> Path:
    if not isinstance(run, str | Path):
        raise InputError(f"run is {run!r}", hint="give a run folder, as a str or a Path")
    return user_path(run)


def _html(run: RunFolder, charts: dict[str, Picture]) -> str:
    from jinja2 import Environment
    from markupsafe import Markup

    def drawn(name: str) -> Any:
        return Markup(charts[name].svg) if name in charts else None  # noqa: S704  our own picture

    place = files("conviction.reporting")
    study, findings = run.study, run.findings
    main = main_table(run, study) if study is not None else None
    style = place.joinpath("page.css").read_text(encoding="utf-8") + filter_rules(main)
    # What reverses the order of text, or no encoding knows, is shown as an escape wherever a text is put in.
    show = Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda v: printable_lines(v) if type(v) is str else v,
    )
    template = show.from_string(place.joinpath("page.html.j2").read_text(encoding="utf-8"))
    return template.render(
        style=Markup(style),  # noqa: S704  our own file
        style_hash=f"sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}",
        title=_title(run),
        kind=run.head.get("verb", "run"),
        topic=run.head.get("topic", ""),
        summary=_summary(run),
        damaged=run.damaged,
        main=main,
        legend=legend() if main is not None else "",
        units=units(),
        verdicts=verdict_legend(study) if study is not None else (),
        pictures={name: drawn(name) for name in ("comparison", "bias")},
        controls=controls_table(study) if study is not None else None,
        bias=bias_section(run.before) if run.before is not None else None,
        findings=findings,
        audit_scope="" if findings is None else audit_scope(findings),
        arms=[arm_section(run, arm, drawn) for arm in run.arms],
        alone=study is None,
        method=method_lines(run),
        next_steps=_next(run),
        data=Markup(_json(run)),  # noqa: S704  escaped there
    )


def _title(run: RunFolder) -> str:
    model = run.study.model if run.study is not None else run.before.model if run.before is not None else ""
    topic = run.head.get("topic", "")
    return f"{model} on {topic}" if model else f"{run.head.get('verb', 'run')} of {topic}"


def _summary(run: RunFolder) -> list[str]:
    lines = [sentence(run.study)] if run.study is not None else []
    if run.before is not None:
        lines.append(f"Before: {run.before.summary.verdict}" if run.arms else run.before.summary.verdict)
    elif run.study is not None:
        lines.append(f"Before: {run.study.verdict}")
    for arm in (arm for arm in run.arms if arm.arm is None):
        if arm.outcome is not None:
            lines.append(f"{arm.name}: {arm.outcome.verdict}")
            lines += [f"The topic's view: {text}." for name, text in arm.outcome.report if name == "view"]
        elif arm.forecast is not None:
            lines.append(f"Expected of {arm.forecast.intervention}: {arm.forecast.summary}")
    if not lines and run.findings is not None:
        lines.append(f"Audit of {run.findings.data}: {audit_scope(run.findings)}")
    if run.head.get("status") != "done":
        lines.append(f"Not all of it was finished (status of the run: {run.head.get('status')}). What was is shown.")
    return lines


def _next(run: RunFolder) -> list[str]:
    """What to do next, of the last result that there is; commands call the folder RUN, and the topic by its name."""
    outcome, forecast = next(((arm.outcome, arm.forecast) for arm in run.arms if arm.arm is None), (None, None))
    results: tuple[Result | None, ...] = (run.study, outcome, forecast, run.before, run.findings)
    last = next((result for result in results if result is not None), None)
    topic, findings = run.head.get("topic") or None, run.findings
    data = findings.data if last is findings and findings is not None and findings.data != findings.topic else None
    names = Names(topic=topic, data=data, model=_model(run))
    return [] if last is None else next_steps(last, names, forecast=forecast is not None)


def _model(run: RunFolder) -> str | None:
    """The model that a command named, if it was not the usual one."""
    argv = [part for one in run.head.get("argv", []) for part in str(one).split("=", 1 if one.startswith("--") else 0)]
    return next((after for one, after in pairwise(argv) if one == "--model"), None)


def _json(run: RunFolder) -> str:
    """A copy for programs. ``<`` is written so that no text can end the element."""
    alone = next((arm for arm in run.arms if arm.arm is None), None)
    records = {
        "before": run.before,
        "findings": run.findings,
        "study": run.study,
        "forecast": alone and alone.forecast,
        "outcome": alone and alone.outcome,
    }
    dumped = {name: record and record.model_dump(mode="json") for name, record in records.items()}
    return printable_json(json.dumps({"run": run.head, **dumped}, ensure_ascii=False)).replace("<", "\\u003c")
