"""The table of a study, on stdout."""

from __future__ import annotations

from collections.abc import Sequence

from conviction.core.wording import inline
from conviction.reporting.words import cells, control_lines, header, legend, plain, reasons, sentence
from conviction.studies.records import Study
from conviction.views.console import out, print_line, write, write_json
from conviction.views.text import Format, show, show_lines

__all__ = ["show_study"]

LONG_TITLE = 8  # characters; a longer one stands on two lines where the table would not fit the terminal


def show_study(study: Study, form: Format) -> None:
    """One row an arm, and under it why."""
    if form == "json":
        write_json(study.model_dump(mode="json"))
        return
    titles, body = header(), [cells(arm) for arm in study.arms]
    if form == "text":
        titles = _fitting(titles, body)
    show(f"{study.model} on '{study.topic}', towards {study.target}", titles, body, form)
    why = [(arm.name, line) for arm in study.arms for line in reasons(arm)]
    plainly = [(arm.name, plain(arm)) for arm in study.arms]
    controls = control_lines(study)
    if form == "md":
        write(
            f"\n{inline(sentence(study))}\n\nBefore: {inline(study.verdict)}\n\n"
            + _bullets(plainly)
            + "\n"
            + _bullets(why)
        )
        if controls:
            write("\nPositive controls:\n\n" + _bullets(controls))
        return
    print_line(f"\n{sentence(study)}")
    print_line(f"\nBefore: {study.verdict}")
    show_lines("In plain words", plainly, form)
    show_lines("Why", why, form)
    if controls:
        show_lines("Not shown to be readable on this model (positive controls)", controls, form)
    print_line(f"\n{legend()}")


def _bullets(lines: Sequence[tuple[str, str]]) -> str:
    return "".join(f"- **{inline(name)}**: {inline(line)}\n" for name, line in lines)


def _fitting(titles: list[str], body: Sequence[Sequence[str]]) -> list[str]:
    """Titles, the long ones hyphenated in their middle if the table is wider than the terminal."""
    widths = [max(map(len, column)) for column in zip(titles, *body, strict=True)]
    if sum(widths) + len(widths) - 1 <= out.width:
        return titles
    halves = [(title[: (len(title) + 1) // 2], title[(len(title) + 1) // 2 :]) for title in titles]
    return [
        title if len(title) <= LONG_TITLE else f"{first}-\n{second}"
        for title, (first, second) in zip(titles, halves, strict=True)
    ]
