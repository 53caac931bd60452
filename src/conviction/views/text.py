"""Results as text, JSON or Markdown; progress; errors. Knows no torch and asks no model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from rich.table import Table

from conviction.core.wording import inline
from conviction.views.console import as_json, cell, err, grid, log, out, print_line, print_table, write, write_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from conviction.core.protocols import Progress
    from conviction.errors import ConvictionError

__all__ = ["Format", "log", "progress_bars", "show", "show_error", "show_lines", "write_json"]

Format = Literal["text", "json", "md"]

WRAPS_FROM = 24  # characters of a first column that may as well stand on two lines: questions do, names do not


def show_lines(title: str, lines: Iterable[tuple[str, str]], form: Format) -> None:
    """Print labels and values, as text or Markdown, under a title; both may be empty."""
    if form == "md":
        heading = f"\n**{inline(title)}**\n\n" if title else "\n"
        body = (f"- {inline(label)}{': ' if label else ''}{inline(value)}\n" for label, value in lines)
        write(heading + "".join(body))
        return
    if title:
        print_line(f"\n{title}", "bold")
    print_table(grid(lines))


def show(title: str, header: list[str], body: list[list[str]], form: Format) -> None:
    """Print one table: the first column is text, the others are aligned right."""
    if form == "json":
        write_json([dict(zip(header, row, strict=True)) for row in body])
    elif form == "md":
        lines = [[inline(text) for text in line] for line in (header, *body)]
        lines.insert(1, ["---", *["---:"] * (len(header) - 1)])
        write(f"**{inline(title)}**\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines))
    else:
        print_table(_table(title, header, body))


def _table(title: str, header: list[str], body: list[list[str]]) -> Table:
    widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
    table = Table(title=cell(title), title_justify="left", header_style="bold", box=None, pad_edge=False)
    needed = min(WRAPS_FROM, widths[0]) + sum(widths[1:]) + 2 * (len(widths) - 1)
    table.collapse_padding = needed > out.width
    for i, (name, width) in enumerate(zip(header, widths, strict=True)):
        justify: Literal["left", "right"] = "left" if i == 0 else "right"
        table.add_column(cell(name), justify=justify, overflow="fold", min_width=min(6, width))
    for row in body:
        table.add_row(*map(cell, row))
    return table


def show_error(error: ConvictionError, form: Format = "text") -> None:
    """The two lines that every error prints; with json one object. Both on stderr."""
    if form == "json":
        kind = type(error).__name__
        log(as_json({"error": error.message, "help": error.hint, "kind": kind}, encoding=err.encoding), style="")
        return
    log(f"error: {error.message}", style="bold red")
    log(f"help: {error.hint}", style="")


@contextmanager
def progress_bars() -> Iterator[Callable[[str], Progress]]:
    """Progress on stderr, one bar per stage; quiet where stderr is no terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=err, transient=True, disable=not err.is_terminal) as bars:

        def begin(name: str) -> Progress:
            task = bars.add_task(cell(name).plain, total=None)
            return lambda done, total: bars.update(task, completed=done, total=total)

        yield begin
