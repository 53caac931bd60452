"""``run.json``: what a run was begun for, when and by which command, and how it ended; and who may write it."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from conviction.core.gate import read_json, validate
from conviction.core.lock import HOLDER, only_one
from conviction.core.names import check_links, file_name
from conviction.core.record import Frozen
from conviction.core.storage import clear_unfinished, is_unfinished, write_atomic
from conviction.core.wording import printable
from conviction.errors import RunError

SCHEMA = 2
LOCK = ".lock"
"""A file that the process that writes into a run folder has locked."""
Status = Literal["running", "done", "interrupted", "failed"]


class _Head(Frozen):
    """The fields of ``run.json``."""

    schema_version: int
    verb: str
    topic: str
    argv: tuple[str, ...]
    started: str
    call: dict[str, Any] | None = None
    finished: str | None
    status: Status


def read_head(folder: Path) -> dict[str, Any]:
    """What ``run.json`` says. Raises RunError for a folder that is no run, or one of another schema version."""
    hint = "give the folder that a command named with --run, or in runs/"
    where = printable(folder / "run.json")
    try:
        head = read_json(folder / "run.json", RunError, hint=hint)
        version = head.get("schema_version", SCHEMA) if isinstance(head, dict) else SCHEMA
        if version == SCHEMA:
            validate(_Head, head, where, RunError, hint=hint)
    except RunError as error:
        reason = error.message.removeprefix(where).lstrip(": ")
        raise RunError(f"{printable(folder)} holds no readable run.json ({reason})", hint=hint) from error
    if version != SCHEMA:
        raise RunError(
            f"{printable(folder)} was written with schema version {printable(version)}, this program reads {SCHEMA}",
            hint="use the version of conviction that made the run, or make the run again in a new folder",
        )
    return dict(head)


def new_folder(topic: str, verb: str) -> Path:
    """A name that no folder has yet: ``runs/<time>_<topic>_<verb>_<id>``."""
    stamp = datetime.now().astimezone().strftime("%Y-%m-%dT%H-%M-%S")
    return Path("runs") / f"{stamp}_{file_name(topic)}_{file_name(verb)}_{secrets.token_hex(2)}"


def make_head(
    *, topic: str, verb: str, argv: Sequence[str] | None = None, call: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What ``run.json`` says of a run that begins now.

    call  what the work is asked for, which two attempts at the same have in common; None: the program's arguments
    """
    head = {
        "schema_version": SCHEMA,
        "verb": verb,
        "topic": topic,
        "argv": list(sys.argv if argv is None else argv),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    head = head if call is None else {**head, "call": call}
    # the name of a file may hold bytes that are no text, which no file of ours can hold
    written = json.dumps(head, default=str, ensure_ascii=False).encode("utf-8", "replace")
    return dict(json.loads(written))


def write_head(folder: Path, head: Mapping[str, Any], status: Status) -> None:
    """Write ``run.json``, with the time at which the run ended, if it did."""
    finished = None if status == "running" else datetime.now(UTC).isoformat(timespec="seconds")
    content = json.dumps({**head, "finished": finished, "status": status}, indent=1) + "\n"
    write_atomic(folder / "run.json", content)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """No other process writes into the folder meanwhile; what a killed one left half-written in it goes.

    Raises RunError, which names the other process, if there is one; and for links that lead out of the folder.
    """
    check_links(folder, RunError)
    with only_one(folder / LOCK, str(folder), hint="wait for it, or give --run another folder"):
        clear_unfinished(folder)
        yield


def status_of_the_same(folder: Path, wanted: dict[str, Any]) -> Status | None:
    """How an earlier attempt at the same ended; None for a new folder. RunError if it holds something else."""
    hint = "give --run a new folder, or leave it out"
    try:
        if not folder.exists() or (folder.is_dir() and all(_is_no_result(path) for path in folder.iterdir())):
            return None
        begun = (folder / "run.json").exists()
    except OSError as error:
        raise RunError(f"{printable(folder)} cannot be a run folder: {error.strerror}", hint=hint) from error
    if not begun:
        raise RunError(f"{printable(folder)} is not empty and holds no readable run.json", hint=hint)
    head = read_head(folder)
    state = "a finished" if head.get("status") == "done" else "an unfinished"
    if (head.get("verb"), head.get("topic")) != (wanted["verb"], wanted["topic"]):
        raise RunError(f"{folder} holds {state} {head.get('verb')} of '{head.get('topic')}'", hint=hint)
    if other := _other_arguments(head, wanted):
        raise RunError(f"{folder} was begun with other arguments: {other}", hint=hint)
    status: Status = head["status"]
    return status


def _is_no_result(path: Path) -> bool:
    """Whether a file only says that a process works here, or is what a process that was killed at once has left."""
    return path.name in {LOCK, f"{LOCK}{HOLDER}"} or is_unfinished(path)


def _other_arguments(head: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """What a run was begun with, where that is not what is wanted now."""
    if "call" in wanted and "call" in head:
        then, now = head["call"], wanted["call"]
        return ", ".join(f"{name}={then.get(name)}" for name in {**then, **now} if then.get(name) != now.get(name))
    begun, asked = _without_folder(head.get("argv", [])), _without_folder(wanted["argv"])
    return "" if begun == asked else " ".join(begun) or "none"


def _without_folder(argv: Sequence[str]) -> list[str]:
    """Arguments but for where they are carried out: a run that named its folder itself is continued with --run."""
    kept, skip = [], False
    for argument in argv[1:]:
        if not skip and argument != "--run" and not argument.startswith("--run="):
            kept.append(argument)
        skip = argument == "--run" and not skip
    return kept
