"""What the arms of a study share, and how each step is done once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from conviction.core.depth import Readings
from conviction.core.protocols import LanguageModel
from conviction.core.run import Run
from conviction.core.scorecard import Scorecard
from conviction.core.storage import storage_errors, write_atomic
from conviction.core.topic import Topic
from conviction.errors import RunError

if TYPE_CHECKING:
    from conviction.train.loop import Watch

__all__ = ["Load", "Notes", "Setup", "alone", "check_same", "hold_to", "once"]

Load = Callable[[str], LanguageModel]
Found = TypeVar("Found", bound=BaseModel)
Measured = TypeVar("Measured")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The untouched model with its readings, and what arms are measured by.

    wear_steps  benign training steps after which durability is read; 0: it is not
    placebo     train each trained arm once more on another subject, to take that shift off
    worn        models after benign training, by id: arms that leave the weights alone share one
    """

    topic: Topic
    base: LanguageModel
    readings: Readings
    load: Load
    watch: Watch
    wear_steps: int
    placebo: bool
    worn: dict[str, LanguageModel] = field(default_factory=dict)


def once(run: Run, stage: str, kind: type[Found], make: Callable[[], Found]) -> Found:
    """The result of a step: read back if it is there, else made and kept."""
    if (run.folder / f"{stage}.json").exists():
        return run.load(stage, kind)
    return run.save(stage, make())


@dataclass(frozen=True)
class Notes:
    """What a reader of an arm's result has to know; said at once, and kept."""

    watch: Watch
    lines: list[str] = field(default_factory=list)

    def add(self, line: str) -> None:
        """Say and keep it."""
        self.watch.say(line)
        self.lines.append(line)

    def beside(self, what: str, measure: Callable[[], Measured]) -> Measured | None:
        """What is measured beside an arm's own result, and may fail, in whatever way, without taking that along."""
        try:
            return measure()
        except Exception as error:
            self.add(f"{what} could not be measured: {error}")
            return None


def hold_to(run: Run, design: Mapping[str, Any]) -> None:
    """Keep what a study was begun with. Raises RunError where the folder was begun with something else."""
    path = run.folder / "design.json"
    text = json.dumps(design, indent=1, ensure_ascii=False, default=str) + "\n"
    if not path.exists():
        write_atomic(path, text)
        return
    with storage_errors(f"reading {path}"):
        kept = path.read_text(encoding="utf-8")
    try:
        begun, now = dict(json.loads(kept)), json.loads(text)
    except (ValueError, TypeError) as error:
        raise RunError(f"{path} is damaged", hint="give --run a new folder") from error
    if other := [name for name in now if begun.get(name) != now[name]]:
        raise RunError(
            f"{run.folder} was begun with another design: {', '.join(other)} differ", hint="give --run a new folder"
        )


def check_same(topic: Topic, *found: Readings | Scorecard) -> None:
    """Raise RunError for what was measured with other questions."""
    if any(measured.provenance.get("topic_sha256") != topic.digest for measured in found):
        raise RunError(
            f"the topic '{topic.name}' has changed since this study began", hint="give --run a new folder, or undo that"
        )


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Nobody else writes a study into the folder. Raises RunError if somebody does."""
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise RunError(
            f"another study writes into {folder}", hint="wait for it, or give --run another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()
