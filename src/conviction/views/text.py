"""Results as text, JSON or Markdown; progress; errors. Knows no torch and asks no model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable

    from conviction.core.protocols import Progress
    from conviction.errors import ConvictionError

__all__ = ["Format", "grid", "log", "progress_bars", "show", "show_error", "show_lines", "write_json"]

Format = Literal["text", "json", "md"]

out = Console(highlight=False, soft_wrap=False)
err = Console(stderr=True, highlight=False)

WRAPS_FROM = 24  # characters of a first column that may as well stand on two lines: questions do, names do not


def write_json(value: Any) -> None:
    """One JSON value on stdout."""
    out.file.write(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def grid(lines: Iterable[Sequence[str]]) -> Table:
    """Labels and values, indented under a title."""
    table = Table.grid(padding=(0, 2))
    for label, value in lines:
        table.add_row("", Text(label), Text(value))
    return table


def show_lines(title: str, lines: Iterable[tuple[str, str]], form: Format) -> None:
    """Print labels and values, as text or Markdown, under a title; both may be empty."""
    if form == "md":
        heading = f"\n**{title}**\n\n" if title else "\n"
        out.file.write(heading + "".join(f"- {label}{': ' if label else ''}{value}\n" for label, value in lines))
        return
    if title:
        out.print(Text(f"\n{title}", style="bold"))
    out.print(grid(lines))


def show(title: str, header: list[str], body: list[list[str]], form: Format) -> None:
    """Print one table: the first column is text, the others are aligned right."""
    if form == "json":
        out.file.write(json.dumps([dict(zip(header, row, strict=True)) for row in body], indent=1) + "\n")
    elif form == "md":
        lines = [header, ["---", *["---:"] * (len(header) - 1)], *body]
        escaped = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
        out.file.write(f"**{title}**\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in escaped))
    else:
        widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
        table = Table(title=Text(title), title_justify="left", header_style="bold", box=None, pad_edge=False)
        needed = min(WRAPS_FROM, widths[0]) + sum(widths[1:]) + 2 * (len(widths) - 1)
        table.collapse_padding = needed > out.width
        for i, (name, width) in enumerate(zip(header, widths, strict=True)):
            justify: Literal["left", "right"] = "left" if i == 0 else "right"
            table.add_column(Text(name), justify=justify, overflow="fold", min_width=min(6, width))
        for row in body:
            table.add_row(*map(Text, row))  # Text: markup in a topic's texts stays text
        out.print(table)


def log(text: str) -> None:
    """One line of what is going on, on stderr."""
    err.print(text, style="dim", markup=False, soft_wrap=True)


def show_error(error: ConvictionError) -> None:
    """The two lines that every error prints."""
    err.print(Text(f"error: {error.message}", style="bold red"), soft_wrap=True)
    err.print(Text(f"help: {error.hint}"), soft_wrap=True)


@contextmanager
def progress_bars() -> Iterator[Callable[[str], Progress]]:
    """Progress on stderr, one bar per stage; quiet where stderr is no terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=err, transient=True, disable=not err.is_terminal) as bars:

        def begin(name: str) -> Progress:
            task = bars.add_task(name, total=None)
            return lambda done, total: bars.update(task, completed=done, total=total)

        yield begin
