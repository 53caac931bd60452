"""From the columns that a user has to the fields that are read: which is which, and which is not read.

A column that conditions the answer is read or refused by name; every other column that is not read is named once.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from conviction.core.wording import printable
from conviction.data.facts import FACT_FIELDS
from conviction.errors import InputError, nearest

__all__ = [
    "BESIDE",
    "EMPTY",
    "FIELDS",
    "MEDIA",
    "NO_COLUMNS",
    "PROMPT_NAMES",
    "READ",
    "SCORES",
    "Kind",
    "Layout",
    "Row",
    "RowError",
    "find_layout",
    "parse_columns",
]

Row = Mapping[str, Any]

FIELDS = ("prompt", "chosen", "rejected", "completion", "messages", "text", "system", "history", "input")
MEDIA = ("images", "image", "videos", "video", "audio", "audios", "tools")
"""Fields that TRL knows and that hold more than text: a row that fills one is refused."""
EMPTY: tuple[Any, ...] = (None, [], {}, "", "[]", "{}")
"""What fills no such field; LlamaFactory writes tools as a text."""
BESIDE = ("context", "contexts", "documents")
"""Columns of texts that an answer may depend on, in no form that is known: refused in pairs and examples."""
SCORES = ("score_chosen", "score_rejected")
NO_COLUMNS: Mapping[str, str] = {}

PROMPT_NAMES = ("instruction", "question", "query", "input")
"""What others call a prompt."""
_OTHER_NAMES = {
    "messages": ("conversations", "conversation"),
    "chosen": ("chosen_response",),
    "rejected": ("rejected_response", "rejected_messages"),
    "prompt": PROMPT_NAMES,
    "system": ("system_prompt", "system_message"),
}
_COMPLETIONS = ("output", "response")
_SCORE_NAMES = tuple(
    tuple(form.format(side) for side in ("chosen", "rejected"))
    for form in ("score_{}", "{}_score", "{}-rating", "{}_rating", "rating_{}")
)
READ = frozenset(
    [
        *(*FIELDS, *BESIDE, *SCORES, *FACT_FIELDS, *_COMPLETIONS),
        *(name for names in (*_OTHER_NAMES.values(), *_SCORE_NAMES) for name in names),
    ]
)
"""Columns whose values may be read; of others it is enough to know whether they are filled."""
_MAPPED = re.compile(r'\s*([\w-]+)=("[^"]*"|[^,]*)\s*(?:,|$)')


class RowError(Exception):
    """One row cannot be used: (problem, hint). Gathered and reported together."""

    def __init__(self, problem: str, hint: str) -> None:
        super().__init__(printable(problem), printable(hint))


Kind = Literal["pairs", "examples", "documents", "facts"]


@dataclass(frozen=True)
class Layout:
    """Which column holds what.

    names    field → the user's column, where their names differ; '': the field is to be left out
    columns  as the user names them
    has      the same, in the names of our fields
    """

    names: Mapping[str, str] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    has: frozenset[str] = frozenset()

    def column(self, name: str) -> str:
        """What the user calls a field."""
        return self.names.get(name, name)

    def fields(self, row: Row) -> dict[str, Any]:
        """A row under the names of our fields."""
        if not self.names:
            return dict(row)
        taken = {*self.names, *self.names.values()}
        own = {name: value for name, value in row.items() if name not in taken}
        return own | {name: row[column] for name, column in self.names.items() if column in row}

    def named(self, error: RowError) -> RowError:
        """The same error in the user's names of the fields."""
        problem = error.args[0]
        for name, column in self.names.items():
            if column:
                problem = problem.replace(f"'{name}'", f"'{column}'")
        return RowError(problem, error.args[1])

    def notes(self, kind: Kind) -> tuple[str, ...]:
        """What the user should know of the columns, if the rows become this."""
        if kind == "examples":
            read = {*_EXAMPLES, *({"prompt", "completion", "input"} if "completion" in self.has else {"messages"})}
        else:
            read = {"pairs": _PAIRS, "facts": {"prompt", *FACT_FIELDS}, "documents": {"text"}}[kind]
        ours = {column: name for name, column in self.names.items()}
        left_out = {name for name, column in self.names.items() if not column}
        unread = [c for c in self.columns if ours.get(c, c) not in {*read, *MEDIA} or c in left_out]
        bare = kind == "pairs" and not {"prompt", "messages"} & self.has
        beside = "; none is known to hold the prompt, so it is what both answers begin with" if bare else ""
        return (f"columns that are not read: {printable(', '.join(unread))}{beside}",) if unread else ()


_EXAMPLES = {"system", "history", *BESIDE}
_PAIRS = {*_EXAMPLES, "prompt", "input", "messages", "chosen", "rejected", *SCORES}


def find_layout(columns: Sequence[str], given: Mapping[str, str] = NO_COLUMNS, where: str = "") -> Layout:
    """How a data set with these columns is read; ``given`` (field → column, '' for none) goes before what is known.

    Raises InputError for a field or a column that there is none of.
    """
    _check(given, columns, where)
    names = dict(given)
    has = {*columns} - {*given.values()} - {name for name, column in given.items() if not column}
    has |= {name for name, column in given.items() if column}

    def read(name: str, column: str) -> None:
        names[name] = names.pop(column, column)
        has.symmetric_difference_update({name, column})

    for name, others in _OTHER_NAMES.items():
        other = next((o for o in others if o in has and o not in names), None)
        if other and name not in {*has, *names} and (name != "prompt" or _is_asked(has)):
            read(name, other)
    if "rejected" in has and "chosen" not in {*has, *names}:  # ms-swift: the better answer is the usual one
        for other in [o for o in ("messages", "response") if o in has][:1]:
            read("chosen", other)
    if "prompt" in has and not has & {"chosen", "rejected", "completion", "messages", "text"}:
        for other in [o for o in _COMPLETIONS if o in has][:1]:
            read("completion", other)
    for pair in _SCORE_NAMES:
        if has >= {*pair} and not has & {*SCORES}:
            for ours, theirs in zip(SCORES, pair, strict=True):
                read(ours, theirs)
    return Layout(names, tuple(columns), frozenset(has))


def _is_asked(has: Collection[str]) -> bool:
    """Whether a column such as 'question' is what an answer of the row answers; beside messages it is not."""
    return "messages" not in has and not {"chosen", "rejected", "completion", *_COMPLETIONS}.isdisjoint(has)


def _check(given: Mapping[str, str], columns: Sequence[str], where: str) -> None:
    known = [*FIELDS, *MEDIA, *BESIDE, *SCORES, *FACT_FIELDS]
    for name, column in given.items():
        if name not in known:
            raise InputError(
                f"--columns: there is no field '{name}'", hint=f"{nearest(name, known)}fields: {', '.join(FIELDS)}"
            )
        if column and column not in columns:
            raise InputError(
                f"{where}: there is no column '{column}', which is to be '{name}'",
                hint=f"{nearest(column, columns)}columns: {', '.join(columns[:12])}",
            )


def parse_columns(text: str | None) -> dict[str, str]:
    """``prompt=Question,chosen="Better answer"`` as field → column; ``input=`` leaves a field out.

    Raises InputError for what is not of this form.
    """
    result: dict[str, str] = {}
    end = 0
    while text and end < len(text):
        match = _MAPPED.match(text, end)
        if match is None or match[1] in result:
            raise InputError(
                f"--columns is {text!r}",
                hint='write FIELD=COLUMN once for a field, with commas: prompt=Question,chosen="Better answer"',
            )
        result[match[1]] = match[2].strip().strip('"')
        end = match.end()
    return result
