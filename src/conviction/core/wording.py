"""Numbers and foreign texts in sentences."""

from __future__ import annotations

__all__ = ["counted", "percent", "printable"]


def counted(number: int, noun: str) -> str:
    """``1 row``, ``2,312 rows``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def percent(share: float) -> str:
    """A share in whole percent; below one percent, and not nothing, as such."""
    return "under 1 %" if 0 < share < 0.01 else f"{share:.0%}".replace("%", " %")


def printable(text: str) -> str:
    """A text that can be written anywhere: lone surrogates, which no encoding knows, as escapes."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
