"""What a rule is: one file in ``rules/`` whose docstring is its page and which ends in ``RULE``.

A rule begins a ``Check`` for every audit; the check sees the rows one by one and
says in the end what it found. Rules know no files, no model and no other rule.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from conviction.auditing.records import Level
from conviction.auditing.row import AuditRow
from conviction.core.protocols import AnswerScore
from conviction.core.wording import counted, percent
from conviction.data.topic import Topic

SHOWN = 10
"""Rows of evidence in a finding."""

Needs = Literal["topic", "model", "samples", "hidden_states"]
TOPIC: frozenset[Needs] = frozenset({"topic"})
MODEL: frozenset[Needs] = frozenset({"model"})
HIDDEN_STATES: frozenset[Needs] = frozenset({"hidden_states"})


@dataclass(frozen=True, kw_only=True)
class AuditContext:
    """What an audit knows besides the rows.

    own          the model's own samples on some of the prompts, scored
    beta         of the preference loss that is planned
    margin_cap   of the guard that is planned
    """

    topic: Topic | None = None
    own: Sequence[AnswerScore] = ()
    beta: float = 0.1
    margin_cap: float = 2.0


@dataclass(frozen=True)
class RuleFinding:
    """What a check found; the audit signs it with the rule's code and name."""

    message: str
    advice: str
    rows: Sequence[int] = ()
    evidence: Sequence[Mapping[str, Any]] = ()
    level: Level | None = None
    """None: the rule's own."""
    fixable: bool = True
    """False: the rule has a repair, but not for these."""


class Check(Protocol):
    """One rule at work on one data set."""

    def observe(self, row: AuditRow, /) -> None:
        """Look at the next row."""

    def findings(self) -> Iterable[RuleFinding]:
        """What is wrong, after the last row."""

    def metrics(self) -> Mapping[str, Any]:
        """What was measured on the set, whether or not anything is wrong."""


@dataclass(frozen=True)
class Repair:
    """A safe one.

    drop  begins a pass over the rows: its answer tells of each row whether to leave it out
    edit  an answer's text → the text without the fault at its ends
    """

    drop: Callable[[], Callable[[AuditRow], bool]] | None = None
    edit: Callable[[str], str] | None = None


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One kind of fault.

    code    PD1xx form, PD2xx duplicates and leaks, PD3xx shortcuts, PD4xx against a model, PD5xx the set
    since   the version that brought it
    status  preview: may change or go; runs only if selected by its whole code
    sees    pairs, those that the model was asked about, or the rows that hold none
    needs   what it cannot do without
    uses    what it makes use of where it is given
    repair  for ``--fix``, if there is a safe one
    """

    code: str
    name: str
    since: str
    begin: Callable[[AuditContext], Check]
    status: Literal["stable", "preview"] = "stable"
    level: Level = "warning"
    sees: Literal["pairs", "measured", "unusable"] = "pairs"
    needs: frozenset[Needs] = frozenset()
    uses: frozenset[Needs] = frozenset()
    repair: Repair | None = None


@dataclass
class Hits:
    """Rows that a look found something in: all their numbers, the first few with evidence, counted by where."""

    seen: int = 0
    rows: list[int] = field(default_factory=list)
    evidence: list[dict[str, Any]] = field(default_factory=list)
    where: Counter[str] = field(default_factory=Counter)
    fixable: int = 0

    def add(self, row: int, evidence: Mapping[str, Any]) -> None:
        """One more, with what was found in it."""
        shown = {"row": row, **evidence}
        self.rows.append(row)
        self.fixable += shown.pop("fixable", False)
        if "where" in shown:
            self.where[shown["where"]] += 1
        if len(self.evidence) < SHOWN:
            self.evidence.append(shown)

    @property
    def share(self) -> float:
        """Of the rows seen."""
        return len(self.rows) / self.seen if self.seen else 0.0

    def findings(
        self,
        message: str,
        advice: str,
        *,
        level: Level | None = None,
        common: float | None = None,
        fixable: bool = True,
    ) -> Iterator[RuleFinding]:
        """All the rows as one finding, if there are any; the message may name {rows}, {pairs}, {share} and {places}.

        common  the share from which on it is a warning, and a note below; None: ``level``, or the rule's own
        """
        if not self.rows:
            return
        rows, pairs = (counted(len(self.rows), noun) for noun in ("row", "pair"))
        places = ", ".join(f"{count} in {where}" for where, count in self.where.most_common())
        text = message.format(rows=rows, pairs=pairs, share=percent(self.share), places=places)
        if common is not None:
            level = "warning" if self.share >= common else "note"
        yield RuleFinding(text, advice, self.rows, self.evidence, level, fixable)


@dataclass
class Worst:
    """Evidence from the rows that score highest."""

    heap: list[tuple[float, int, dict[str, Any]]] = field(default_factory=list)

    def add(self, score: float, row: int, **evidence: Any) -> None:
        """Keep it if it is among the highest so far."""
        if len(self.heap) < SHOWN:
            heapq.heappush(self.heap, (score, row, evidence))
        elif (score, row) > self.heap[0][:2]:
            heapq.heapreplace(self.heap, (score, row, evidence))

    @property
    def evidence(self) -> list[dict[str, Any]]:
        """From the highest downwards."""
        return [{"row": row, **result} for _, row, result in sorted(self.heap, key=lambda e: e[:2], reverse=True)]


Look = Callable[[AuditRow], Mapping[str, Any] | None]
"""Evidence from one row; None: nothing. ``where``: the part it stands in; ``fixable``: whether a repair would do."""


def each_row(look: Look, message: str, advice: str, *, common: float | None = None) -> Callable[[AuditContext], Check]:
    """A rule that looks at every row by itself; message and ``common`` as ``Hits.findings`` takes them."""

    class Looking:
        def __init__(self, _: AuditContext) -> None:
            self.hits = Hits()

        def observe(self, row: AuditRow, /) -> None:
            self.hits.seen += 1
            result = look(row)
            if result is not None:
                self.hits.add(row.number, result)

        def findings(self) -> Iterable[RuleFinding]:
            return self.hits.findings(message, advice, common=common, fixable=self.hits.fixable > 0)

        def metrics(self) -> Mapping[str, Any]:
            return {"rows": len(self.hits.rows), **({"where": dict(self.hits.where)} if self.hits.where else {})}

    return Looking


def place(places: Sequence[str]) -> str:
    """Where a row's fault stands, in a word: one side, both, or the prompt."""
    return "both" if {"chosen", "rejected"} <= set(places) else places[0]
