"""A study in words and cells: what the terminal's table, Markdown and the page say alike."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from conviction.auditing.records import AuditReport
from conviction.core.wording import counted, inline
from conviction.forecasting.records import WRONG
from conviction.probing.depth_records import Property, PropertyOutcome
from conviction.probing.metric import Metric, Phrases
from conviction.probing.metrics import load_metrics
from conviction.studies.records import Arm, Judgement, SeedRun, Study, Verdict

ABOUT = ["arm", "verdict"]
COSTS = {  # short titles: ten columns fit a terminal of 80
    "s": "seconds of applying it",
    "MB": "the most that the process held meanwhile, or since it began",
    "tokens": "more with every question",
}
MEANING: dict[Verdict, str] = {
    "deep": "went deep",
    "shallow": "moved the view and what follows from it, but not firmly",
    "surface": "moved what it says; what follows from it did not move, or was not measured",
    "not shown": "may have moved it or not: too few propositions to tell",
    "none": "did not move it towards the target by as much as would be of use",
    "broken": "did harm",
}
"""What an arm did that got the verdict."""
OUTCOMES: dict[PropertyOutcome, str] = {
    "yes": "good",
    "no": "bad",
    "unclear": "not shown",
    "not measured": "not measured",
    "not readable": "not readable",
}
"""Whether a property is as it is wished for: there if it is a change, kept if it is something to lose."""
UNDECIDED: dict[PropertyOutcome, str] = {
    "unclear": "not shown: too few questions to tell",
    "not measured": "not measured",
    "not readable": "not readable on this model",
}


def header() -> list[str]:
    """Titles of the table's columns: those of the metrics among them."""
    return [*ABOUT, *_columns(), *COSTS]


def legend() -> str:
    """What the columns show."""
    parts = {title: metrics[0].column.legend for title, metrics in _columns().items() if metrics[0].column}
    marks = {"—": "not measured", "n.r.": "not readable on this model"}
    return "; ".join(f"{title}: {text}" for title, text in (parts | COSTS | marks).items())


def _columns() -> dict[str, list[Metric]]:
    """Title → the metrics that share the column, in the table's order."""
    columns: dict[str, list[Metric]] = {}
    for metric in load_metrics():
        if metric.column is not None:
            columns.setdefault(metric.column.title, []).append(metric)
    return columns


def cells(arm: Arm) -> list[str]:
    """One row of the table."""
    if arm.judgement is None:
        return [arm.name, arm_state(arm), *[""] * (len(_columns()) + len(COSTS))]
    judgement = arm.judgement
    return [
        arm.name,
        judgement.verdict + _share_broken(judgement),
        *(_cell(judgement, metrics) for metrics in _columns().values()),
        "—" if arm.seconds is None else f"{arm.seconds:.0f}",
        "—" if arm.peak_mb is None else f"{arm.peak_mb:,}",
        f"{arm.extra_tokens or 0:.0f}",
    ]


def _cell(judgement: Judgement, metrics: Sequence[Metric]) -> str:
    """What each metric of a column says."""
    texts = [m.column.cell(m.own(judgement.properties)) for m in metrics if m.column is not None]
    return ", ".join(filter(None, texts)) or "none"


def plain(arm: Arm) -> str:
    """An arm in one line of plain words: 'says it, cannot explain it, forgot the view of cico; not measured (…)'."""
    return "; ".join(filter(None, plain_parts(arm)))


def plain_parts(arm: Arm) -> tuple[str, str]:
    """What an arm does and what it lost; and what is not known of it, by why that is so. Either may be empty."""
    if arm.failure is not None:
        return "left out: no time was left" if arm.failure.kind == "BudgetSpent" else "failed: nothing to judge", ""
    if arm.judgement is None:
        return "not finished: not judged yet", ""
    outcomes = list(_counting(arm.judgement))
    clauses = [words.good if one.outcome == "yes" else words.bad for one, words in outcomes if one.outcome in _SHOWN]
    unknown: dict[str, list[str]] = {}
    for one, words in outcomes:
        if (why := UNDECIDED.get(one.outcome)) is not None:
            unknown.setdefault(why, []).append(words.about)
    known = ", ".join(dict.fromkeys(filter(None, clauses)))
    rest = "; ".join(f"{why} ({', '.join(dict.fromkeys(abouts))})" for why, abouts in unknown.items())
    return known if known or rest else "nothing was measured", rest


_SHOWN = ("yes", "no")


def _counting(judgement: Judgement) -> Iterator[tuple[Property, Phrases]]:
    """Properties that a line about an arm names: of an arm that moved nothing, those of the change and of harm alone.

    Parts count for damage only, as they do for the verdict.
    """
    moved = judgement.change is not None and judgement.change.outcome == "yes"
    for metric in load_metrics():
        for one in metric.own(judgement.properties):
            if metric.kind != "damage" and (":" in one.metric or not (moved or metric.kind == "change")):
                continue
            yield one, _away(metric, one)


def _away(metric: Metric, one: Property) -> Phrases:
    """The words for a property; a change that went the other way is said to."""
    words = metric.phrases_of(one)
    if metric.kind == "change" and one.outcome == "no" and one.high is not None and one.high < 0:
        return replace(words, bad=f"{words.bad}, moved away from it")
    return words


def verdict_legend(study: Study) -> list[tuple[str, str]]:
    """(verdict, what it means), of all verdicts, those without a judgement that occur among them."""
    more: dict[Verdict, str] = {
        "deep": ": what follows from the view moved as well, it withstands challenges, and it lasts",
        "broken": ": something that should have stayed was lost",
    }
    lines = [(verdict, f"the arm {meaning}{more.get(verdict, '')}") for verdict, meaning in MEANING.items()]
    states = {arm_state(arm) for arm in study.arms if arm.judgement is None}
    also = {
        "left out": "no time was left to apply it",
        "failed": "it could not be applied or measured",
        "unfinished": "it was begun, and not judged yet",
    }
    return lines + [(state, text) for state, text in also.items() if state in states]


def arm_state(arm: Arm) -> str:
    """An arm's verdict, or why there is none: 'left out', 'failed', 'unfinished'."""
    if arm.judgement is not None:
        return arm.judgement.verdict
    if arm.failure is None:
        return "unfinished"
    return "left out" if arm.failure.kind == "BudgetSpent" else "failed"


def units() -> str:
    """What the unit of a gap means, once for a whole page."""
    return (
        "A gap in nats per token is a difference of mean log-probabilities per token. At +0.10 each token of the "
        f"target's answer is {factor(0.1)} as likely as one of the other side's, at +0.41 it is {factor(0.41)}, "
        f"at +1.00 it is {factor(1.0)}. A shift is the gap after a change less the gap before."
    )


def factor(nats: float) -> str:
    """How many times likelier a token is by so many nats."""
    return f"{math.exp(min(nats, 50.0)):.1f} times"


def reasons(arm: Arm) -> list[str]:
    """Why an arm got its verdict, or none."""
    if arm.failure is not None:
        help_line = [f"help: {arm.failure.hint}"] if arm.failure.hint else []
        kind = "" if arm.failure.kind == "BudgetSpent" else f"{arm.failure.kind}: "
        return [f"{kind}{arm.failure.message}", *help_line]
    lines = []
    if (judged := arm.judgement) is not None:  # a reason that counts the seeds needs no words that do
        lines.append(f"{judged.verdict if judged.broken_seeds else judged.words}: {judged.reason}")
    lines += [seed_line(arm.judgement)] if arm.judgement is not None and arm.judgement.seeds else []
    lines += [f"applied in {arm.applied_in}"] if arm.applied_in is not None else []
    lines += arm.notes
    if arm.judgement is not None and arm.judgement.placebo is not None:
        names = [metric.name for metric in load_metrics(["change", "propagation"])]
        lines.append(f"{_listed(names)} are those beyond a placebo's")
    if arm.guard_stop is not None:
        lines.append(f"stopped by the guard: {arm.guard_stop}")
    if arm.forecast_score is not None and arm.forecast is not None:
        score = arm.forecast_score
        real = "the run was stopped" if score.flips is None else f"{score.flips} flipped"
        flips = f"{score.expected_flips:.1f} flips of {score.wrong} pairs {WRONG}"
        lines.append(f"forecast '{arm.forecast}', {flips} expected; {real}")
    return lines


def _share_broken(judgement: Judgement) -> str:
    return f" {len(judgement.broken_seeds)}/{len(judgement.read_seeds)}" if judgement.broken_seeds else ""


def seed_line(judgement: Judgement) -> str:
    """What each seed moved, from the smallest to the largest, and how it ended; what was read of the first alone."""
    read = sorted(judgement.read_seeds, key=lambda one: one.shift_nats or 0.0)
    moved = [f"{one.shift_nats or 0.0:+.2f} (seed {one.seed}{_end(one)})" for one in read]
    first = judgement.seeds[0].seed
    alone = f"; beyond shift and harm seed {first} alone was read" if len(read) > 1 else ""
    return f"{counted(len(read), 'seed')}, nats per token: {', '.join(moved)}{alone}"


def _end(one: SeedRun) -> str:
    return (", broken" if one.harm else "") + (", stopped by the guard" if one.guard_stop is not None else "")


def audit_scope(report: AuditReport) -> str:
    """Which rules of the audit ran and which did not: without it, no finding would look like no fault."""
    lines = [f"{counted(len(report.checked), 'rule')} ran, {counted(len(report.findings), 'finding')}."]
    lines += [f"Not run: {', '.join(codes)} ({why})." for why, codes in report.not_run.items()]
    return " ".join(lines)


def control_lines(study: Study) -> list[tuple[str, str]]:
    """(metric, what its positive control did) of the metrics that are not shown to be readable on the model."""
    return [(one.metric, f"{one.outcome}: {one.text}") for one in study.controls if one.outcome != "readable"]


def sentence(study: Study) -> str:
    """The whole study in a few sentences: verdicts, what moved the model farthest, and what that took."""
    judged = [(arm.name, arm.judgement) for arm in study.arms if arm.judgement is not None]
    if not judged:
        return "No arm was judged."
    groups: dict[str, list[str]] = {}
    for name, judgement in judged:
        groups.setdefault(judgement.words, []).append(name)
    parts = [
        f"{_listed(names)} {'moved what it says' if v == 'surface' and words != v else MEANING[v]}"
        f"{words.removeprefix(v)}"
        for v in MEANING
        for words, names in groups.items()
        if words.partition(" ")[0] == v
    ]
    return " ".join(["; ".join(parts) + ".", *_farthest(study.arms), *_paid(study.arms)])


def _farthest(arms: Sequence[Arm]) -> Iterator[str]:
    """Which arm moved the model farthest, and which of those that need no tokens and broke nothing."""
    moved = {arm.name: value for arm in arms if (value := _shown_shift(arm)) is not None}
    broken = {arm.name for arm in arms if arm.judgement is not None and arm.judgement.verdict == "broken"}
    if not moved or (len(moved) == 1 and broken >= moved.keys()):  # of which is said what it took
        return
    first = max(moved, key=lambda name: moved[name])
    farthest = " farthest," if len(moved) > 1 else ""
    tokens = {arm.name: arm.extra_tokens or 0.0 for arm in arms}
    price = f", with {tokens[first]:.0f} more tokens before every question" if round(tokens[first]) else ""
    yield f"{first} moved it{farthest} by {moved[first]:+.2f} nats per token{price}."
    free = [name for name in moved if not round(tokens[name]) and name not in broken]
    if free and (best := max(free, key=lambda name: moved[name])) != first:
        which = "Of those that broke nothing" if first in broken else "Without further tokens"
        yield f"{which}, {best} did by {moved[best]:+.2f}{' without further tokens' if first in broken else ''}."


def _paid(arms: Sequence[Arm]) -> Iterator[str]:
    """Of arms that moved the model and broke it, how far, and how many right answers that took."""
    for arm in arms:
        kept = arm.judgement.kept if arm.judgement is not None and arm.judgement.verdict == "broken" else None
        if kept is not None and (value := _shown_shift(arm)) is not None:
            lost = f"{kept.of - kept.kept} of {kept.of} answers that the untouched model has right"
            yield f"{arm.name} moved it by {value:+.2f} and lost {lost}."


def _shown_shift(arm: Arm) -> float | None:
    change = arm.judgement.change if arm.judgement is not None else None
    return change.value if change is not None and change.outcome == "yes" else None


def _listed(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *body]
    return "".join("| " + " | ".join(map(inline, line)) + " |\n" for line in lines)
