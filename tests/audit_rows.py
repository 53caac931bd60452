"""Rows of preference pairs, clean and with faults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def row(i: int, **more: Any) -> dict[str, Any]:
    return {"prompt": f"Question {i}?", "chosen": f"The answer to it is {i}.", "rejected": f"Nobody knows {i}.", **more}


ROWS = [row(i) for i in range(30)]


def jsonl(rows: list[Any], path: Path) -> Path:
    lines = (line if isinstance(line, bytes) else json.dumps(line).encode() for line in rows)
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


DIRTY = [
    *ROWS[:3],
    {**ROWS[0], "source": "again"},
    row(10, chosen="Yes, please.<|im_end|>\n", rejected="<|assistant|>No."),
    row(11, chosen="The same.", rejected="The same. "),
    row(12, chosen="Cut off.</s>", rejected="Cut off."),
    row(13, chosen="In the <|im_end|> middle.", note={"kept": [1, None]}),
    b'{"prompt": "broken',
    row(14, rejected=""),
]
