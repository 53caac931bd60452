"""Records as tables: pandas frames, and HTML for notebooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from conviction.errors import MissingExtraError

if TYPE_CHECKING:
    from pandas import DataFrame  # type: ignore[import-untyped]
else:  # for annotations: pandas takes a second to import
    DataFrame = Any


class Table(NamedTuple):
    """A record as rows. columns: their order, and what there is where there are no rows."""

    title: str
    rows: Sequence[Mapping[str, Any]]
    columns: Sequence[str]


class Tabular(Protocol):
    """A record that says what it is as a table, and takes its methods for that from here."""

    def table(self) -> Table:
        """What a row is, and which columns it has."""
        ...


def to_pandas(self: Tabular) -> DataFrame:
    """The rows of ``table()`` as a pandas frame. Raises MissingExtraError where pandas is not installed."""
    try:
        import pandas as pd
    except ImportError as error:
        raise MissingExtraError(
            "to_pandas() needs pandas, which is not installed", hint="pip install pandas"
        ) from error
    _, rows, columns = self.table()
    return pd.DataFrame(list(rows), columns=list(columns))


def repr_html(self: Tabular) -> str:
    """``table()`` for a notebook."""
    return html_table(*self.table())


def html_table(title: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """A title and a table for a notebook; every text is escaped, numbers have four digits."""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join("<tr>" + "".join(_cell(row.get(name)) for name in columns) + "</tr>" for row in rows)
    return f"<p><b>{escape(title)}</b></p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: Any) -> str:
    text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return f"<td>{escape(text)}</td>"
