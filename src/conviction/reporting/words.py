"""A study in words and cells: what the terminal's table, Markdown and the page say alike."""

from __future__ import annotations

from collections.abc import Sequence

from conviction.core.statistics import ALPHA
from conviction.core.wording import percent
from conviction.probing.depth_records import Judgement, Property
from conviction.studies.records import Arm, Study

__all__ = ["HEADER", "LEGEND", "cells", "inline", "markdown", "reasons", "sentence"]

HEADER = [
    *("arm", "verdict", "moved", "propagation", "robustness", "durability", "harm"),
    *("s", "MB", "tokens"),  # short: ten columns fit a terminal of 80
]
LEGEND = (
    "moved: nats per token on test questions, * where chance does not explain it; propagation: what its "
    "implications moved, as a share of that; robustness: what challenges leave, against beliefs of its own; durability: "
    "what benign training leaves; harm: what was shown to be lost; s: seconds of applying it; MB: the most that the process held meanwhile, "
    "or since it began; tokens: more with every question"
)
KEPT = ("locality", "health", "pluralism", "coherence")


def cells(arm: Arm) -> list[str]:
    """One row of the table."""
    if arm.judgement is None:
        state = "left out" if arm.failure is not None and arm.failure.kind == "BudgetSpent" else "failed"
        return [arm.name, state, *[""] * (len(HEADER) - 2)]
    judged = arm.judgement
    shift = judged.find("shift")
    star = "*" if shift is not None and shift.p_holm is not None and shift.p_holm < ALPHA else ""
    return [
        arm.name,
        judged.verdict,
        "" if shift is None or shift.value is None else f"{shift.value:+.2f}{star}",
        *(_share(judged.find(name)) for name in ("propagation", "robustness", "durability")),
        _harm(judged),
        "—" if arm.seconds is None else f"{arm.seconds:.0f}",
        "—" if arm.peak_mb is None else f"{arm.peak_mb:,}",
        f"{arm.extra_tokens or 0:.0f}",
    ]


def _share(found: Property | None) -> str:
    return "—" if found is None or found.value is None else percent(found.value)


def _harm(judged: Judgement) -> str:
    names = [f.metric for f in judged.properties if f.outcome == "no" and f.metric.split(":")[0] in KEPT]
    return ", ".join(names) or "none"


def reasons(arm: Arm) -> list[str]:
    """Why an arm got its verdict, or none."""
    if arm.failure is not None:
        help_line = [f"help: {arm.failure.hint}"] if arm.failure.hint else []
        kind = "" if arm.failure.kind == "BudgetSpent" else f"{arm.failure.kind}: "
        return [f"{kind}{arm.failure.message}", *help_line]
    lines = [arm.judgement.reason] if arm.judgement is not None else []
    lines += [f"applied in {arm.applied_in}"] if arm.applied_in is not None else []
    lines += arm.notes
    if arm.judgement is not None and arm.judgement.placebo is not None:
        lines.append("shift and propagation are those beyond a placebo's")
    if arm.guard_stop is not None:
        lines.append(f"stopped by the guard: {arm.guard_stop}")
    if arm.forecast_score is not None and arm.forecast is not None:
        score = arm.forecast_score
        real = "the run was stopped" if score.flips is None else f"{score.flips} flipped"
        lines.append(f"forecast '{arm.forecast}', {score.expected_flips:.1f} of {score.wrong} flips expected; {real}")
    return lines


def sentence(study: Study) -> str:
    """The whole study in one sentence."""
    judged = [(arm.name, arm.judgement.verdict) for arm in study.arms if arm.judgement is not None]
    if not judged:
        return "No arm was judged."
    moved = [(s.value, arm.name) for arm in study.arms if arm.judgement and (s := arm.judgement.find("shift"))
             and s.outcome == "yes" and s.value is not None]  # fmt: skip
    farthest = f" {max(moved)[1]} moved it farthest, by {max(moved)[0]:+.2f} nats per token." if len(moved) > 1 else ""
    groups: dict[str, list[str]] = {}
    for name, verdict in judged:
        groups.setdefault(verdict, []).append(name)
    order = ("deep", "shallow", "surface", "none", "broken")
    said = {
        "deep": "went deep",
        "shallow": "moved the view and what follows from it, but not firmly",
        "surface": "moved what it says; what follows from it did not move, or was not measured",
        "none": "did not move it towards the target, or hardly",
        "broken": "did harm",
    }
    return "; ".join(f"{_listed(groups[v])} {said[v]}" for v in order if v in groups) + "." + farthest


def _listed(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *body]
    return "".join("| " + " | ".join(map(inline, line)) + " |\n" for line in lines)


def inline(text: str) -> str:
    """A foreign text on one line of Markdown, as text."""
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
