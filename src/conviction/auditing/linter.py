"""A linter for preference data: rules look at every row, and say what is wrong with evidence.

``RULES`` maps a code to where its rule lives; a rule is one file in ``rules/``
whose docstring is its page.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from conviction.auditing.measuring import measure
from conviction.auditing.records import LEVELS, AuditReport, Finding
from conviction.auditing.row import AuditRow
from conviction.auditing.rows import rows_of_source, rows_of_training_data
from conviction.auditing.rule import AuditContext, Check, Rule
from conviction.core.context import RunContext
from conviction.core.protocols import HiddenStateModel, LanguageModel
from conviction.data.columns import NO_COLUMNS
from conviction.data.rows import Source, open_source
from conviction.data.topic import Topic
from conviction.data.training_data import TrainingData
from conviction.errors import InputError, nearest

_WHERE = "conviction.auditing.rules"
RULES: dict[str, str] = {
    "PD101": f"{_WHERE}.unusable_row:RULE",
    "PD102": f"{_WHERE}.mixed_forms:RULE",
    "PD103": f"{_WHERE}.identical_answers:RULE",
    "PD104": f"{_WHERE}.template_token:RULE",
    "PD105": f"{_WHERE}.prompt_echo:RULE",
    "PD106": f"{_WHERE}.truncated_answer:RULE",
    "PD107": f"{_WHERE}.broken_encoding:RULE",
    "PD108": f"{_WHERE}.stray_whitespace:RULE",
    "PD109": f"{_WHERE}.thought_in_answer:RULE",
    "PD201": f"{_WHERE}.duplicate_pair:RULE",
    "PD202": f"{_WHERE}.near_duplicate:RULE",
    "PD203": f"{_WHERE}.contradicting_labels:RULE",
    "PD204": f"{_WHERE}.test_leak:RULE",
    "PD205": f"{_WHERE}.contradicting_scores:RULE",
    "PD301": f"{_WHERE}.length_gap:RULE",
    "PD302": f"{_WHERE}.format_gap:RULE",
    "PD303": f"{_WHERE}.shallow_shortcut:RULE",
    "PD401": f"{_WHERE}.policy_mismatch:RULE",
    "PD402": f"{_WHERE}.belief_flip:RULE",
    "PD403": f"{_WHERE}.margin_over_cap:RULE",
    "PD404": f"{_WHERE}.satisfied_pair:RULE",
    "PD405": f"{_WHERE}.likelihood_displacement:RULE",
    "PD406": f"{_WHERE}.pessimistic_pair:RULE",
    "PD407": f"{_WHERE}.over_length:RULE",
    "PD501": f"{_WHERE}.too_few_pairs:RULE",
    "PD502": f"{_WHERE}.thin_coverage:RULE",
    "PD503": f"{_WHERE}.wrong_pole:RULE",
}

_WITHOUT = {
    "topic": "a topic",
    "model": "a model",
    "samples": "a model",
    "hidden_states": "a model whose hidden states can be seen",
}


def audit(
    data: str | Path | TrainingData,
    *,
    topic: Topic | None = None,
    model: LanguageModel | None = None,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    beta: float = 0.1,
    margin_cap: float = 2.0,
    split: str = "train",
    columns: Mapping[str, str] = NO_COLUMNS,
    ctx: RunContext | None = None,
) -> AuditReport:
    """Look for faults in preference pairs.

    data             a file, a folder, a hub name (as ``open_source`` reads them), or training data
    topic            what the pairs are to teach: for leaks into its test items, coverage, poles
    model            the model that is to be trained: for everything that depends on what it holds
    select, ignore   codes, beginnings of codes or names of rules; all if none is selected
    beta, margin_cap of the loss and the guard that are planned
    columns          field → the column that it is to be read from, where that has another name

    Without a model the data is streamed: 10 GB need no more memory than their
    keys, counts and sketches (about 1 kB a row; a JSON list is read whole). Raises
    InputError for data that holds no pairs, an unknown rule, or a rule that is named and
    lacks what it needs.
    """
    ctx = ctx or RunContext()
    rules, skipped = _able(choose_rules(select, ignore), topic, model)
    named = {name.upper() for name in select}
    for rule in map(find_rule, skipped):
        if rule.code in named or rule.name.upper() in named:
            raise InputError(f"{rule.code} {rule.name} {skipped[rule.code]}", hint="give --topic or --model")
    name, lines, notes, rows = _open(data, split, columns, ctx)
    context = AuditContext(topic=topic, beta=beta, margin_cap=margin_cap)
    late = [rule for rule in rules if model is not None and (rule.needs | rule.uses) - {"topic"}]
    early = {rule.code: rule.begin(context) for rule in rules if rule not in late}
    seen = _Seen()
    seen.read_all(rows, _of(rules, early, "pairs"), _of(rules, early, "unusable"), keep=bool(late))
    checks = {**early, **(_measured(late, seen.kept, model, context, ctx) if model is not None else {})}
    results = [finding for rule in rules for finding in _sign(rule, checks[rule.code], seen.records)]
    return AuditReport(
        data=name,
        topic=topic.name if topic else None,
        model=model.id if model else None,
        read=seen.read,
        usable=seen.usable,
        lines=lines,
        findings=tuple(sorted(results, key=lambda f: (LEVELS.index(f.level), f.code))),
        checked=tuple(rule.code for rule in rules),
        skipped=skipped,
        notes=notes,
        metrics={rule.code: dict(checks[rule.code].metrics()) for rule in rules},
    )


@dataclass
class _Seen:
    """Rows that went by: how many, how many of them usable, kept for a model; lines → records where they differ."""

    read: int = 0
    usable: int = 0
    kept: list[AuditRow] = field(default_factory=list)
    records: dict[int, int] = field(default_factory=dict)

    def read_all(
        self, rows: Iterable[AuditRow], usable: Sequence[Check], unusable: Sequence[Check], *, keep: bool
    ) -> None:
        for row in rows:
            self.read += 1
            self.usable += row.pair is not None
            if row.record:
                self.records[row.number] = row.record
            for check in usable if row.pair is not None else unusable:
                check.observe(row)
            if keep and row.pair is not None:
                self.kept.append(row)


def _open(
    data: str | Path | TrainingData, split: str, columns: Mapping[str, str], ctx: RunContext
) -> tuple[str, bool, tuple[str, ...], Iterator[AuditRow]]:
    if isinstance(data, TrainingData):
        if not data.pairs:
            raise InputError(f"{data.name} holds no preference pairs", hint="give rows of prompt, chosen, rejected")
        return data.name, False, data.notes, rows_of_training_data(data)
    source: Source = open_source(data, split=split)
    layout, rows = rows_of_source(source, ctx.progress("reading"), columns)
    return source.where, source.lines, layout.notes("pairs"), rows


def _of(rules: Iterable[Rule], checks: Mapping[str, Check], sees: str) -> list[Check]:
    return [checks[rule.code] for rule in rules if rule.code in checks and rule.sees == sees]


def _measured(
    rules: Sequence[Rule], rows: Sequence[AuditRow], model: LanguageModel, context: AuditContext, ctx: RunContext
) -> dict[str, Check]:
    """Checks that have seen the rows with what the model says of them."""
    wanted = {need for rule in rules for need in rule.needs}
    measured, own = measure(rows, model, states="hidden_states" in wanted, samples="samples" in wanted, ctx=ctx)
    context = dataclasses.replace(context, own=own)
    checks = {rule.code: rule.begin(context) for rule in rules}
    for row in measured:
        for rule in rules:
            if rule.sees != "measured" or row.measured is not None:
                checks[rule.code].observe(row)
    return checks


def _sign(rule: Rule, check: Check, records: Mapping[int, int]) -> Iterator[Finding]:
    """Findings under the rule's name; evidence of a row that is not the line's record says which it is."""
    for finding in check.findings():
        evidence = [
            {"row": line["row"], "record": records[line["row"]], **line} if line.get("row") in records else dict(line)
            for line in finding.evidence
        ]
        yield Finding(
            code=rule.code,
            name=rule.name,
            level=finding.level or rule.level,
            message=finding.message,
            advice=finding.advice,
            rows=tuple(finding.rows),
            numbers=dict(check.metrics()),
            evidence=tuple(evidence),
            fixable=rule.repair is not None and finding.fixable,
        )


def find_rule(code_or_name: str) -> Rule:
    """The rule of a code or a name. Raises InputError if there is none."""
    wanted = code_or_name.upper()
    if wanted not in RULES:  # names are in the files
        names = {_load(code).name: code for code in RULES}
        if code_or_name.lower() not in names:
            raise InputError(
                f"there is no rule '{code_or_name}'",
                hint=f"{nearest(code_or_name, [*names, *RULES])}`conviction rule` lists them all",
            )
        wanted = names[code_or_name.lower()]
    return _load(wanted)


def _load(code: str) -> Rule:
    module, _, attribute = RULES[code].partition(":")
    rule: Rule = getattr(import_module(module), attribute)
    return rule


def rule_page(code_or_name: str) -> str:
    """The page of a rule, in Markdown. Raises InputError for an unknown one."""
    rule = find_rule(code_or_name)
    doc = import_module(RULES[rule.code].partition(":")[0]).__doc__ or ""
    title, _, body = doc.partition("\n")
    needs = f"; needs {_lacking(rule.needs)}" if rule.needs else ""
    fix = "; `--fix` repairs it" if rule.repair else ""
    return f"# {title.strip()}\n\n{rule.level}, {rule.status}, since {rule.since}{needs}{fix}\n{body.rstrip()}\n"


def choose_rules(select: Sequence[str] = (), ignore: Sequence[str] = ()) -> list[Rule]:
    """Rules by codes, beginnings of codes, or names, in the order of their codes; preview rules by whole code only."""
    rules = [_load(code) for code in RULES]

    def matching(patterns: Sequence[str]) -> set[str]:
        results: set[str] = set()
        for pattern in patterns:
            hits = {r.code for r in rules if r.code.startswith(pattern.upper()) or r.name == pattern.lower()}
            if not hits:
                known = [name for r in rules for name in (r.code, r.name)]
                raise InputError(
                    f"no rule is called '{pattern}'", hint=f"{nearest(pattern, known)}`conviction rule` lists them all"
                )
            results |= hits
        return results

    wanted = matching(select) if select else {r.code for r in rules}
    exact = {pattern.upper() for pattern in select}
    unwanted = matching(ignore)
    return [r for r in rules if r.code in wanted - unwanted and (r.status == "stable" or r.code in exact)]


def _able(rules: Sequence[Rule], topic: Topic | None, model: LanguageModel | None) -> tuple[list[Rule], dict[str, str]]:
    """Those that have what they need, and what the others lack."""
    shown = model if isinstance(model, HiddenStateModel) and model.hidden_states else None
    there: dict[str, Any] = {"topic": topic, "model": model, "samples": model, "hidden_states": shown}
    lacking = {rule.code: [need for need in rule.needs if there[need] is None] for rule in rules}
    skipped = {code: f"needs {_lacking(needs)}" for code, needs in lacking.items() if needs}
    return [rule for rule in rules if rule.code not in skipped], skipped


def _lacking(needs: Iterable[str]) -> str:
    return " and ".join(sorted({_WITHOUT[need] for need in needs}))
