"""``conviction topics new NAME``: a small, complete kit to start from."""

from __future__ import annotations

import os
import re
import shutil
from importlib.resources import files
from pathlib import Path

from conviction.core.names import is_name
from conviction.core.storage import new_folder_beside, storage_errors, write_atomic
from conviction.core.wording import printable
from conviction.data.topic import builtin_topics
from conviction.errors import InputError

# One proposition is worded twice (target, paraphrase); a neighbour and a control are facts.
FILES = ("items.jsonl", "contexts/plain.md", "contexts/milky.md", "topic.yaml")


def write_skeleton(folder: Path) -> Path:
    """Write the skeleton into a new folder. Raises InputError if it exists or the name is unfit."""
    name = folder.name
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name) or not is_name(name):
        raise InputError(f"'{printable(name)}' cannot name a topic", hint="use small letters, digits, '-' and '_'")
    if name in builtin_topics():
        raise InputError(f"'{name}' is a built-in topic", hint="choose another name")
    if os.path.lexists(folder):
        raise InputError(f"{folder} exists already", hint="choose another name, or delete it first")
    with storage_errors(f"writing {folder}"):
        work = new_folder_beside(folder)
        try:
            for file in FILES:
                text = files("conviction.data").joinpath("skeleton", file).read_text(encoding="utf-8")
                write_atomic(work / file, text.replace("{name}", name).replace("{folder}", str(folder)))
            work.rename(folder)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
    return folder
