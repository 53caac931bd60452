"""What an audit found: findings with their evidence, and the report that holds them."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import Field

from conviction.core import frames
from conviction.core.record import Frozen

Level = Literal["error", "warning", "note"]
"""error: these rows cannot be trained on, or teach their opposite; warning: they probably teach
something else than was meant; note: worth knowing, no fault."""
LEVELS: tuple[Level, ...] = get_args(Level)


class Finding(Frozen):
    """One fault of the data.

    code, name  of the rule: ``conviction rule CODE`` explains it
    rows        all rows it concerns: lines of a text file, else places counted from 1; empty if
                it concerns the set as a whole
    numbers     what was measured on the set
    evidence    the first rows, or the worst, with what was measured on each: ``{"row": 12, …}``
    fixable     whether ``--fix`` repairs it
    """

    code: str
    name: str
    level: Level
    message: str
    advice: str
    rows: tuple[int, ...] = ()
    numbers: dict[str, Any] = Field(default={})
    evidence: tuple[dict[str, Any], ...] = ()
    fixable: bool = False


class AuditReport(Frozen):
    """Everything that an audit says. ``findings``: the gravest level first, then by code.

    read, usable  rows there are, and those that hold a pair
    lines         whether a row's number is its line in the file ``data``
    checked       codes of the rules that ran
    skipped       code → what it would have needed: a topic, a model, a model with weights
    notes         what a user should know of how the data was read: columns that were not
    metrics       code → what a rule measured, whether or not it found anything
    """

    data: str
    topic: str | None
    model: str | None
    read: int
    usable: int
    lines: bool
    findings: tuple[Finding, ...]
    checked: tuple[str, ...]
    skipped: dict[str, str]
    notes: tuple[str, ...] = ()
    metrics: dict[str, dict[str, Any]]

    to_pandas = frames.to_pandas
    _repr_html_ = frames.repr_html

    def plot(self) -> Any:
        """An altair chart: how many rows each finding concerns."""
        from conviction.auditing.charts import findings_chart

        return findings_chart(self)

    def table(self) -> frames.Table:
        """One row a finding: code, name, level, rows (a tuple), message, advice, fixable."""
        columns = ["code", "name", "level", "rows", "message", "advice", "fixable"]
        title = f"{self.data}: {self.usable} pairs, {len(self.findings)} findings"
        return frames.Table(title, [{name: getattr(f, name) for name in columns} for f in self.findings], columns)

    @property
    def not_run(self) -> dict[str, tuple[str, ...]]:
        """What was lacking, such as 'needs a model' → codes of the rules that did not run for want of it."""
        lacking: dict[str, tuple[str, ...]] = {}
        for code, why in self.skipped.items():
            lacking[why] = (*lacking.get(why, ()), code)
        return lacking

    def failed(self, *, strict: bool = False) -> bool:
        """Whether there is anything graver than a note; strict: or a note."""
        return any(strict or f.level != "note" for f in self.findings)
