"""Numbers and foreign texts in sentences."""

from __future__ import annotations

import math
import re

# How a pair counts as wrong, which is said wherever such pairs are counted: by the log-probs of whole answers, as most
# losses compare them, or per token, as ``probe`` does. The two counts differ on the same pairs.
WRONG_BY_SUMS, WRONG_PER_TOKEN = "wrong by their sums", "wrong per token"

# What a terminal obeys (controls, escapes), what changes the order in which text is shown, and lone surrogates, which
# no encoding knows. Tabs and line breaks stay.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# What means something anywhere in a line of Markdown (an underscore not within a word), and what does at its beginning.
_MARKS = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])")
_BEGINNINGS = re.compile(r"^(\d*)(#{1,6}(?=\s|$)|[-+.)](?=\s|$)|>|=+$|-{2,}$)")


def counted(number: int, noun: str) -> str:
    """``1 row``, ``2,312 rows``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def percent(share: float) -> str:
    """A share in whole percent; below one percent, and not nothing, as such."""
    return "under 1 %" if 0 < share < 0.01 else f"{share:.0%}".replace("%", " %")


def rounded_down(value: float) -> float:
    """A number above 0 to two digits, downwards: an upper bound that is given as advice must hold."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.floor(value / unit) * unit:.2g}")


def printable(text: str) -> str:
    """A foreign text that can be written anywhere: what a terminal would obey, or no encoding knows, as escapes."""
    return _UNPRINTABLE.sub(lambda one: f"\\x{ord(one[0]):02x}" if one[0] <= "\x9f" else _code_point(one[0]), text)


def printable_json(text: str) -> str:
    """The same for JSON text, where only strings can hold such characters: it means what it meant."""
    return _UNPRINTABLE.sub(lambda one: _code_point(one[0]), text)


def _code_point(character: str) -> str:
    return f"\\u{ord(character):04x}"


def inline(text: str) -> str:
    """A foreign text on one line of Markdown, as text: no markup, link, picture, HTML, nor the end of a cell."""
    line = " ".join(printable(text).split()).replace("&", "&amp;").replace("<", "&lt;")
    return _BEGINNINGS.sub(r"\1\\\2", _MARKS.sub(r"\\\g<0>", line))
