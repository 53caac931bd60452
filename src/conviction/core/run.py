"""The run folder: one folder per run, and the only writer of artefacts.

Every file appears whole or not at all, and once. ``run.json`` is written when
the run begins and again when it ends: a folder whose status is not 'done' can
be taken up again, and says so.
"""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel

from conviction.core.forecast import Forecast
from conviction.core.scorecard import Scorecard
from conviction.core.storage import storage_errors, write_atomic
from conviction.errors import RunError

__all__ = ["Run"]

SCHEMA = 1
Status = Literal["running", "done", "interrupted", "failed"]
Found = TypeVar("Found", bound=BaseModel)


@dataclass(frozen=True)
class Run:
    """One run folder. ``resumed`` tells that an earlier attempt in it did not finish."""

    folder: Path
    resumed: bool = False

    @classmethod
    @contextmanager
    def start(cls, folder: Path | None, *, topic: str, verb: str, argv: Sequence[str] | None = None) -> Iterator[Run]:
        """Open a new folder (``runs/<time>_<topic>_<verb>_<id>`` if None), or an unfinished one.

        The status becomes 'done' when the block ends, 'interrupted' on Ctrl-C,
        'failed' on an error. Raises RunError if the folder holds something else.
        """
        if folder is None:
            stamp = datetime.now().astimezone().strftime("%Y-%m-%dT%H-%M-%S")
            folder = Path("runs") / f"{stamp}_{topic}_{verb}_{secrets.token_hex(2)}"
        head = {
            "schema_version": SCHEMA,
            "verb": verb,
            "topic": topic,
            "argv": list(sys.argv if argv is None else argv),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        run = cls(folder, resumed=_unfinished(folder, head))
        run._write_head(head, "running")
        try:
            yield run
        except KeyboardInterrupt:
            run._write_head(head, "interrupted")
            raise
        except BaseException:
            run._write_head(head, "failed")
            raise
        run._write_head(head, "done")

    def save(self, stage: str, card: Found) -> Found:
        """Write ``<stage>.json`` and its evidence, if it has any; returns the card, so that calls can be chained."""
        path = self.folder / f"{stage}.json"
        if path.exists() and not self.resumed:
            raise RunError(f"{path} exists already: files of a run are written once", hint="use another --run folder")
        self._add_samples(stage, card)
        write_atomic(
            path, json.dumps(card.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        )
        return card

    def freeze(self, forecast: Forecast) -> Forecast:
        """Write ``forecast.json``. Raises RunError once a step has been taken: no forecast after the fact."""
        path = self.folder / "forecast.json"
        if (self.folder / "steps.jsonl").exists():
            raise RunError(
                f"{self.folder} has trained already: a forecast comes before", hint="use another --run folder"
            )
        if path.exists():
            raise RunError(f"{path} exists already: a forecast is written once", hint="use another --run folder")
        write_atomic(path, forecast.model_dump_json(indent=1) + "\n")
        return forecast

    def thaw(self) -> Forecast:
        """Read ``forecast.json`` back. Raises RunError where there is none, or one of another schema."""
        path = self.folder / "forecast.json"
        if not path.exists():
            raise RunError(
                f"{self.folder} holds no forecast", hint="make one before training: `conviction apply --forecast`"
            )
        with storage_errors(f"reading {path}"):
            text = path.read_text(encoding="utf-8")
        try:
            return Forecast.model_validate_json(text)
        except ValueError as error:
            raise RunError(
                f"{path} cannot be read as a forecast", hint="it was damaged, or another version wrote it"
            ) from error

    def load(self, stage: str, kind: type[Found] = Scorecard) -> Found:  # type: ignore[assignment]
        """Read a card back, evidence included. Raises RunError for one that is damaged, or of another schema."""
        path = self.folder / f"{stage}.json"
        with storage_errors(f"reading {path}"):
            text = path.read_text(encoding="utf-8")
        try:
            data = json.loads(text)
            if "evidence" in kind.model_fields:
                data["evidence"] = [line for line in self._samples() if line.pop("stage") == stage]
            return kind.model_validate(data)
        except (ValueError, TypeError) as error:
            raise RunError(
                f"{path} cannot be read as a {kind.__name__.lower()}",
                hint="it was damaged, or another version wrote it: remove it, and the run makes it again",
            ) from error

    def _add_samples(self, stage: str, card: BaseModel) -> None:
        evidence: Sequence[BaseModel] = getattr(card, "evidence", ())
        if not evidence:
            return
        # Samples of this stage without its scorecard are left over from an interrupted save.
        kept = [line for line in self._samples() if line["stage"] != stage]
        new = [{"stage": stage, **s.model_dump(mode="json")} for s in evidence]
        text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in kept + new)
        write_atomic(self.folder / "samples.jsonl", text)

    def _samples(self) -> list[dict[str, Any]]:
        path = self.folder / "samples.jsonl"
        if not path.exists():
            return []
        with storage_errors(f"reading {path}"):
            text = path.read_text(encoding="utf-8")
        try:
            # not splitlines(): that would also cut at U+2028, which JSON leaves inside strings
            rows = [json.loads(line) for line in text.split("\n") if line]
            return [{"stage": row["stage"], **row} for row in rows]
        except (ValueError, TypeError, KeyError) as error:
            raise RunError(
                f"{path} is damaged: it holds the rows behind every number of this folder",
                hint="remove it and the .json files beside it but run.json, and the run makes them again",
            ) from error

    def _write_head(self, head: dict[str, Any], status: Status) -> None:
        finished = None if status == "running" else datetime.now(UTC).isoformat(timespec="seconds")
        write_atomic(
            self.folder / "run.json", json.dumps({**head, "finished": finished, "status": status}, indent=1) + "\n"
        )


def _without_folder(argv: Sequence[str]) -> list[str]:
    """Arguments but for where they are carried out: a run that named its folder itself is taken up with --run."""
    kept, skip = [], False
    for argument in argv[1:]:
        if not skip and argument != "--run" and not argument.startswith("--run="):
            kept.append(argument)
        skip = argument == "--run" and not skip
    return kept


def _unfinished(folder: Path, wanted: dict[str, Any]) -> bool:
    """Whether ``folder`` holds an earlier attempt at the same; RunError if it cannot be used."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    hint = "give --run a new folder, or leave it out"
    try:
        head = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{folder} is not empty and holds no readable run.json", hint=hint) from error
    if head.get("schema_version") != SCHEMA:
        found = head.get("schema_version")
        raise RunError(f"{folder} has schema version {found}, this program writes {SCHEMA}", hint=hint)
    if head.get("status") == "done":
        raise RunError(f"{folder} holds a finished run", hint=hint)
    if (head.get("verb"), head.get("topic")) != (wanted["verb"], wanted["topic"]):
        raise RunError(f"{folder} holds an unfinished {head.get('verb')} of '{head.get('topic')}'", hint=hint)
    if _without_folder(head.get("argv", [])) != _without_folder(wanted["argv"]):
        begun = " ".join(head.get("argv", [])[1:])
        raise RunError(f"{folder} was begun with other arguments: {begun}", hint=hint)
    return True
