"""Numbers and foreign texts in sentences."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

# How a pair counts as wrong, which is said wherever such pairs are counted: by the log-probs of whole answers, as most
# losses compare them, or per token, as ``probe`` does. The two counts differ on the same pairs.
WRONG_BY_SUMS, WRONG_PER_TOKEN = "wrong by their sums", "wrong per token"

# What a terminal obeys (controls, escapes), what changes the order in which text is shown, and lone surrogates, which
# no encoding knows.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# What means something anywhere in a line of Markdown (an underscore not within a word), and what does at its beginning.
_MARKS = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])")
_BEGINNINGS = re.compile(r"^(\d*)(#{1,6}(?=\s|$)|[-+.)](?=\s|$)|>|=+$|-{2,}$)")


def counted(number: int, noun: str) -> str:
    """``1 row``, ``2,312 rows``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def percent(share: float) -> str:
    """A share in whole percent; below one percent, and not nothing, as such."""
    return "under 1 %" if 0 < share < 0.01 else f"{share:.0%}".replace("%", " %")


def settings_in_words(settings: Mapping[str, Any]) -> str:
    """``learning_rate=0.0005, beta=0.1``."""
    return ", ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in settings.items()
    )


def rounded_down(value: float) -> float:
    """A number above 0 to two digits, downwards: an upper bound that is given as advice must hold."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.floor(value / unit) * unit:.2g}")


def printable(text: object) -> str:
    """A path or a text that can be written anywhere on one line: what a terminal would obey, and what no encoding
    knows, as escapes.
    """
    return _UNPRINTABLE.sub(_escape, str(text))


def printable_lines(text: str) -> str:
    """The same for a text of several lines, which stay, and so do its tabs."""
    return _UNPRINTABLE.sub(lambda one: one[0] if one[0] in "\n\t" else _escape(one), text)


def printable_json(text: str) -> str:
    """The same for JSON text, where only strings can hold such characters: it means what it meant."""
    return _UNPRINTABLE.sub(lambda one: one[0] if one[0] in "\n\t" else f"\\u{ord(one[0]):04x}", text)


def _escape(one: re.Match[str]) -> str:
    return one[0].encode("unicode_escape").decode("ascii")


def inline(text: str) -> str:
    """A foreign text on one line of Markdown, as text: no markup, link, picture, HTML, nor the end of a cell."""
    line = printable(" ".join(text.split())).replace("&", "&amp;").replace("<", "&lt;")
    return _BEGINNINGS.sub(r"\1\\\2", _MARKS.sub(r"\\\g<0>", line))
