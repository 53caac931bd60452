r"""PD107 broken-encoding: text that was decoded wrongly

## What it does
Finds the replacement character (U+FFFD), UTF-8 that was read as Latin-1 or
Windows-1252 (`â€™`, `Ã©`), escapes left as text (`\u2019`), and control characters.

## Why it is bad
Such sequences are rare tokens with a large gradient each. Answers from one source
often have them and answers from the other do not, so that they mark the better side.

## Example
    {"prompt": "Tea?", "chosen": "That isnâ€™t tea.", "rejected": "No."}

## What to do
Decode the source again as UTF-8, or repair the texts (the `ftfy` package does). There is
no `--fix` for it: a lost character cannot be guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from conviction.auditing.row import AuditRow, shown
from conviction.auditing.rule import Rule, each_row, place

_BROKEN = re.compile(
    "\ufffd|[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f]"
    "|â€[\u0080-\u00bf™œ\u2018-\u203a]|Ã[\u0080-\u00bf]|Â[\u00a0-\u00bf]|ï»¿"
    r"|\\u(?:20|00)[0-9a-fA-F]{2}",
)
# all that a plain ASCII text can have of it
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f]|\\u(?:20|00)[0-9a-fA-F]{2}")


def _look(row: AuditRow) -> Mapping[str, Any] | None:
    results = [
        (where, m) for where, text in row.texts if (m := (_CONTROLS if text.isascii() else _BROKEN).search(text))
    ]
    if not results:
        return None
    match = results[0][1]
    begin, end = max(0, match.start() - 20), match.end() + 20
    return {"where": place([where for where, _ in results]), "text": shown(match.string[begin:end])}


RULE = Rule(
    code="PD107",
    name="broken-encoding",
    since="0.1.0",
    begin=each_row(
        _look, "{rows} with broken characters ({places})", "decode the source again as UTF-8, or repair the texts"
    ),
)
