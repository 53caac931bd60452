"""Records as tables: pandas frames, and HTML for notebooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from conviction.errors import MissingExtraError

if TYPE_CHECKING:
    from pandas import DataFrame  # type: ignore[import-untyped]
else:  # for annotations: pandas takes a second to import
    DataFrame = Any

__all__ = ["DataFrame", "data_frame", "html_table"]


def data_frame(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> DataFrame:
    """One row a mapping. columns: their order, and what there is where there are no rows.

    Raises MissingExtraError where pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise MissingExtraError(
            "to_pandas() needs pandas, which is not installed", hint="pip install pandas"
        ) from error
    return pd.DataFrame(list(rows), columns=list(columns))


def html_table(title: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """A title and a table for a notebook; every text is escaped, numbers have four digits."""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join("<tr>" + "".join(_cell(row.get(name)) for name in columns) + "</tr>" for row in rows)
    return f"<p><b>{escape(title)}</b></p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: Any) -> str:
    text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return f"<td>{escape(text)}</td>"
