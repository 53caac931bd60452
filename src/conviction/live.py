"""A run while it goes on, and what it came to: progress, loss, margin and the guard's zone, on stderr."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.text import Text

from conviction.render import Format, err, grid, out, show

if TYPE_CHECKING:
    from conviction.core.applied import Applied
    from conviction.train.loop import Outcome

__all__ = ["live_steps", "show_applied", "show_outcome"]

COLOURS = {"healthy": "green", "warning": "yellow", "stop": "red"}
EVERY = 10  # lines where stderr is no terminal

Step = Callable[[Mapping[str, Any], int], None]


@contextmanager
def live_steps() -> Iterator[Step]:
    """A callback for every step's record: a live line on a terminal, every tenth step as a plain line elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Bars(*columns, console=err, disable=not err.is_terminal) as bars:
        task = bars.add_task("", total=None)

        def step(record: Mapping[str, Any], total: int) -> None:
            zone, line = record["guard"]["zone"], step_line(record)
            if err.is_terminal:
                bars.update(
                    task, completed=record["step"], total=total, description=f"[{COLOURS[zone]}]{zone}[/] {line}"
                )
            elif record["step"] % EVERY in {0, 1} or zone == "stop" or record["step"] == total:
                err.print(Text(f"step {record['step']}/{total}  {zone:8}{line}"), soft_wrap=True)
            for reason in record["guard"]["broken"] if zone == "warning" else ():
                err.print(Text(f"  {reason}", style="yellow"), soft_wrap=True)

        yield step


def step_line(record: Mapping[str, Any]) -> str:
    """Loss, margin and what the guard read, in one line."""
    parts = [f"loss {record['loss']:.3f}"]
    if record.get("margin") is not None:
        parts.append(f"margin {record['margin']:+.2f} ({record['margin_nats']:+.0f} nats)")
        parts.append(f"chosen {-record['chosen_drop']:+.2f}")
    if record["guard"]["neutral_drop"] is not None:
        parts.append(f"neutral {-record['guard']['neutral_drop']:+.2f} nats/token")
    return "  ".join(parts)


def show_outcome(outcome: Outcome, settings: Mapping[str, Any], folder: str, form: Format) -> None:
    """What a run came to, on stdout."""
    import dataclasses

    if form == "json":
        record = {"outcome": dataclasses.asdict(outcome), "settings": dict(settings), "folder": folder}
        out.file.write(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        return
    verdict = "stopped by the guard" if outcome.trip else "healthy to the end"
    blind = settings.get("mode") == "blind"
    if not outcome.trip and blind:
        verdict = "to the end; whether in health was not read, the guard was blind"
    elif outcome.passed:
        verdict = "to the end, with limits passed: the guard was off"
    body = [
        ["steps", f"{outcome.steps} of {outcome.total_steps}"],
        ["tokens", f"{outcome.tokens:,}"],
        ["seconds", f"{outcome.seconds:.0f} (checks by the guard included)"],
        ["peak memory", f"{outcome.peak_mb} MB of this process, weights included"],
        ["model", f"{folder}/model"],
    ]
    body += [["limit passed", limit] for limit in outcome.passed]
    body += [["note", note] for note in outcome.notes]
    if outcome.trip:
        where = f"step {outcome.trip.restored}" if outcome.trip.restored else "before the first step"
        kept = "" if blind else ", the last healthy"
        body.insert(1, ["stopped after", f"step {outcome.trip.step}; the model is the one of {where}{kept}"])
        body += [["reason", reason] for reason in outcome.trip.reasons]
        body += [["flip", outcome.trip.reach]] if outcome.trip.reach else []
    _show(verdict, body, form)


def show_applied(applied: Applied, folder: str, form: Format) -> None:
    """What an intervention that trains nothing did, on stdout."""
    if form == "json":
        record = {
            "verdict": applied.verdict,
            "trip": applied.trip,
            "report": dict(applied.report),
            "evidence": dict(applied.evidence),
            "settings": dict(applied.settings),
            "folder": folder,
        }
        out.file.write(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        return
    body = [[what, value] for what, value in applied.report]
    body += [["reason", applied.trip]] if applied.trip else []
    _show(applied.verdict, [*body, ["model", f"{folder}/model"]], form)


def _show(verdict: str, body: list[list[str]], form: Format) -> None:
    if form == "md":
        show(verdict, ["what", "value"], body, form)
        return
    out.print(Text(verdict, style="bold"))
    out.print(grid(body))
