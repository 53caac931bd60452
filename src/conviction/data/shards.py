"""Data sets in several files, as the hub keeps them: ``train-00000-of-00002.parquet`` and so on."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from conviction.errors import InputError

__all__ = ["find_shards"]

_SHARD = re.compile(r"(?P<split>\w+)-(?P<part>\d{5})-of-(?P<of>\d{5})(?P<ending>\..+)")


def find_shards(files: Sequence[Path], splits: Collection[str]) -> list[Path]:
    """Those of the files that are parts of one of these splits, in order; none if none is.

    Raises InputError if a part is missing, or where there are several such data sets.
    """
    sets: dict[str, dict[int, Path]] = {}
    for path in files:
        match = _SHARD.fullmatch(path.name)
        if match and match["split"] in splits:
            name = f"{match['split']}-*-of-{match['of']}{match['ending']}"
            sets.setdefault(name, {})[int(match["part"])] = path
    if len(sets) > 1:
        where = next(iter(files)).parent
        raise InputError(f"{where}: several data sets in one folder: {', '.join(sets)}", hint="keep one of them")
    for name, parts in sets.items():
        missing = [part for part in range(int(name.partition("-of-")[2][:5])) if part not in parts]
        if missing:
            raise InputError(
                f"{parts[min(parts)].parent}: {name} is not whole, part {missing[0]:05} is missing",
                hint="download the folder again",
            )
    return [parts[part] for parts in sets.values() for part in sorted(parts)]
