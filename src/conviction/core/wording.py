"""Numbers and foreign texts in sentences."""

from __future__ import annotations

import math
import re

# How a pair counts as wrong, which is said wherever such pairs are counted: by the log-probs of whole answers, as most
# losses compare them, or per token, as ``probe`` does. The two counts differ on the same pairs.
WRONG_BY_SUMS, WRONG_PER_TOKEN = "wrong by their sums", "wrong per token"


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


_UNPRINTABLE = re.compile("[\0-\x1f\x7f-\x9f\ud800-\udfff]")


def printable(text: object) -> str:
    """A path or a text that can be written anywhere on one line: control characters, and lone surrogates, which no
    encoding knows, as escapes.
    """
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), str(text))
