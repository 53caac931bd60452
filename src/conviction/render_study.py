"""The table of a study, on stdout."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from conviction.core.depth import Finding, Judgement
from conviction.core.study import Arm, Study
from conviction.core.wording import percent
from conviction.render import Format, grid, out, show, write_json

__all__ = ["show_study"]

HEADER = [
    *("intervention", "verdict", "moved", "follows", "withstands", "lasts", "harm"),
    *("seconds", "peak MB", "tokens more"),
]
LEGEND = """\
moved: nats per token on test questions, * where chance does not explain it; follows: what its implications moved,
as a share of that; withstands: what challenges leave, against beliefs of its own; lasts: what benign training leaves"""


def show_study(found: Study, form: Format) -> None:
    """One row an arm, and under it why."""
    if form == "json":
        write_json(found.model_dump(mode="json"))
        return
    title = f"{found.model} on '{found.topic}', towards {found.target}"
    show(title, HEADER, [_row(arm) for arm in found.arms], form)
    reasons = [(arm.name, line) for arm in found.arms for line in _reasons(arm)]
    if form == "md":
        out.file.write(f"\nBefore: {found.verdict}\n\n" + "".join(f"- **{a}**: {b}\n" for a, b in reasons))
        return
    out.print(Text(f"\nBefore: {found.verdict}"))
    out.print(Text("\nWhy", style="bold"))
    out.print(grid(reasons))
    out.print(Text(f"\n{LEGEND}"))


def _row(arm: Arm) -> list[str]:
    if arm.judgement is None or arm.applying is None:
        state = "left out" if arm.left_out else "failed"
        return [arm.name, state, *[""] * (len(HEADER) - 2)]
    judged = arm.judgement
    shift = judged.find("shift")
    star = "*" if shift is not None and shift.outcome == "yes" else ""
    return [
        arm.name,
        judged.verdict,
        "" if shift is None or shift.value is None else f"{shift.value:+.2f}{star}",
        *(_share(judged.find(name)) for name in ("propagation", "robustness", "durability")),
        _harm(judged),
        f"{arm.applying.seconds:.0f}",
        f"{arm.applying.peak_mb:,}",
        f"{arm.tokens_more or 0:.0f}",
    ]


def _share(finding: Finding | None) -> str:
    return "—" if finding is None or finding.value is None else percent(finding.value)


def _harm(judged: Judgement) -> str:
    names = [
        f.metric for f in judged.findings
        if f.outcome == "no" and f.metric.split(":")[0] in ("collateral", "health", "pluralism", "coherence")
    ]  # fmt: skip
    return ", ".join(names) or "none shown"


def _reasons(arm: Arm) -> Sequence[str]:
    if arm.left_out is not None:
        return [arm.left_out]
    if arm.failure is not None:
        return [
            f"{arm.failure.kind}: {arm.failure.message}",
            *([f"help: {arm.failure.hint}"] if arm.failure.hint else []),
        ]
    lines = [arm.judgement.reason] if arm.judgement is not None else []
    if arm.applying is not None and arm.applying.trip is not None:
        lines.append(f"stopped by the guard: {arm.applying.trip}")
    if arm.score is not None and arm.expected is not None:
        score = arm.score
        real = "the run was stopped" if score.flips is None else f"{score.flips} flipped"
        lines.append(f"forecast '{arm.expected}', {score.expected_flips:.1f} of {score.wrong} flips expected; {real}")
    return lines
