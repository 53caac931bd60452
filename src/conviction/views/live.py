"""Work while it goes on: lines, bars, and a training run's loss, margin and guard zone, on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from conviction.views.console import err, log
from conviction.views.text import progress_bars

if TYPE_CHECKING:
    from conviction.core.context import RunContext

__all__ = ["live_steps", "watched"]

COLOURS = {"healthy": "green", "warning": "yellow", "stop": "red"}
EVERY = 10  # lines where stderr is no terminal

Step = Callable[[Mapping[str, Any], int], None]


@contextmanager
def watched(*, steps: bool = False) -> Iterator[RunContext]:
    """Circumstances in which all that happens is shown on stderr: lines, bars and, if wanted, training steps."""
    from conviction.core.context import Callbacks, RunContext

    with progress_bars() as bars, live_steps() if steps else nullcontext(_unseen) as step:
        yield RunContext(callbacks=Callbacks(log=log, progress=bars, on_step=step))


def _unseen(_record: Mapping[str, Any], _total: int) -> None:
    """A step that is not shown."""


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
                log(f"step {record['step']}/{total}  {zone:8}{line}", "")
            for reason in record["guard"]["violations"] if zone == "warning" else ():
                log(f"  {reason}", "yellow")

        yield step


def step_line(record: Mapping[str, Any]) -> str:
    """Loss, margin and what the guard read, in one line."""
    from conviction.training.sensors import SENSORS

    parts = [f"loss {record['loss']:.3f}"]
    if record.get("margin") is not None:
        parts.append(f"margin {record['margin']:+.2f} ({record['margin_nats']:+.0f} nats)")
        parts.append(f"chosen {-record['chosen_drop']:+.2f}")
    read = record["guard"]
    parts += [s.show(read[s.name]) for s in SENSORS.values() if s.show and read.get(s.name) is not None]
    return "  ".join(parts)
