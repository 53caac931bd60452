"""An audit as text, JSON, Markdown or SARIF. Knows no rule but what findings say of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from conviction.auditing.records import LEVELS
from conviction.core.wording import counted
from conviction.views.console import grid, print_line, print_table, write, write_json
from conviction.views.text import Format, show, show_lines

if TYPE_CHECKING:
    from conviction.auditing.records import AuditReport, Finding
    from conviction.auditing.rule import Rule

__all__ = ["AuditFormat", "show_audit", "show_page", "show_rules"]

AuditFormat = Literal["text", "json", "md", "sarif"]

COLOURS = {"error": "bold red", "warning": "yellow", "note": "cyan"}
ROWS, LINES = 8, 3  # shown without --details
SARIF_ROWS = 100  # locations per finding
SARIF = "https://json.schemastore.org/sarif-2.1.0.json"


def show_audit(report: AuditReport, form: AuditFormat, *, details: bool = False) -> None:
    """Print a report to stdout."""
    if form == "json":
        write_json(report.model_dump(mode="json"))
    elif form == "sarif":
        write_json(_sarif(report))
    elif form == "md":
        _show_markdown(report)
    else:
        _show_text(report, details)


def _headline(report: AuditReport) -> str:
    pairs = counted(report.usable, "pair")
    if not report.findings:
        return f"{report.data}: {pairs}, no findings"
    levels = [(level, sum(f.level == level for f in report.findings)) for level in LEVELS]
    return f"{report.data}: {pairs}; " + ", ".join(counted(n, level) for level, n in levels if n)


def _show_text(report: AuditReport, details: bool) -> None:
    print_line(_headline(report), "bold", wrap=False)
    for finding in report.findings:
        print_line()
        print_line(f"{finding.level} {finding.code} {finding.name}", COLOURS[finding.level])
        print_table(grid(_lines(finding, details)))
    if details:
        show_lines("Measures", [(code, _numbers(m)) for code, m in report.metrics.items() if m], "text")
    tail = list(_tail(report))
    if tail:
        print_line()
        print_table(grid(tail))


def _lines(finding: Finding, details: bool) -> Iterator[tuple[str, str]]:
    yield "what", finding.message
    yield "do", finding.advice
    row = "line" if any("record" in line for line in finding.evidence) else "row"
    if finding.rows:
        yield f"{row}s", _rows(finding.rows, None if details else ROWS)
    for line in finding.evidence[: None if details else LINES]:
        number = line.get("row")
        yield ("" if number is None else f"{row} {number}"), _numbers({k: v for k, v in line.items() if k != "row"})


def _rows(rows: Sequence[int], most: int | None) -> str:
    shown = rows if most is None else rows[:most]
    more = len(rows) - len(shown)
    return ", ".join(map(str, shown)) + (f" and {more:,} more" if more else "")


def _numbers(metrics: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {_value(value)}" for name, value in metrics.items())


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return f"({_numbers(value)})"
    return f"'{value}'" if isinstance(value, str) and " " in value else str(value)


def _tail(report: AuditReport) -> Iterator[tuple[str, str]]:
    for note in report.notes:
        yield "note", note
    for why, left_out in report.not_run.items():
        yield "not run", f"{', '.join(left_out)}: {why}"


def _show_markdown(report: AuditReport) -> None:
    body = [
        [f"{f.level} {f.code} {f.name}", f.message, f.advice, _rows(f.rows, ROWS) or "the set"] for f in report.findings
    ]
    show(_headline(report), ["finding", "what", "what to do", "rows"], body, "md")


def _sarif(report: AuditReport) -> dict[str, Any]:
    """SARIF 2.1.0, for code scanning and editors: a result per finding, a location per row."""
    from conviction.auditing.linter import find_rule

    ran = [find_rule(code) for code in report.checked]
    catalogue = [{"id": r.code, "name": r.name, "defaultConfiguration": {"level": r.level}} for r in ran]
    driver = {"name": "conviction", "rules": catalogue}
    results = [
        {
            "ruleId": finding.code,
            "level": finding.level,
            "message": {"text": f"{finding.message}. {finding.advice}."},
            "locations": _locations(report, finding),
            "properties": {"rows": list(finding.rows), "evidence": list(finding.evidence), "numbers": finding.numbers},
        }
        for finding in report.findings
    ]
    return {"$schema": SARIF, "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}]}


def _locations(report: AuditReport, finding: Finding) -> list[dict[str, Any]]:
    if not report.lines:  # a table, a topic, a data set on the hub
        return [{"logicalLocations": [{"fullyQualifiedName": report.data}]}]
    artifact = {"artifactLocation": {"uri": quote(report.data)}}
    if not finding.rows:
        return [{"physicalLocation": artifact}]
    return [{"physicalLocation": {**artifact, "region": {"startLine": row}}} for row in finding.rows[:SARIF_ROWS]]


def show_page(code: str, page: str, form: Format) -> None:
    """A rule's page, which is Markdown."""
    if form == "json":
        write_json({"code": code, "page": page})
    else:
        write(page)


def show_rules(rules: Sequence[Rule], form: Format) -> None:
    """The table of all rules."""
    body = [
        [r.code, r.name, r.level, r.status, r.since, " ".join(sorted(r.needs - {"samples"})), "yes" if r.repair else ""]
        for r in rules
    ]
    show("Rules of `conviction audit`", ["code", "name", "level", "status", "since", "needs", "--fix"], body, form)
