"""The run folder: one folder per run, and its only reader, writer and lock.

Every file appears whole or not at all, and once. ``run.json`` is written when
the run begins and again when it ends: a folder whose status is not 'done' can
be continued, and says so. Weights (``model/``, ``checkpoints/``) are written by
who knows their format, into the places that a run gives.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from conviction.core.record import Frozen
from conviction.core.run_head import locked, make_head, new_folder, read_head, status_of_the_same, write_head
from conviction.core.storage import finite_or_null, storage_errors, use_umask, write_atomic
from conviction.errors import ConvictionError, RunError

Record = TypeVar("Record", bound=BaseModel)


class Failure(Frozen):
    """Why a part of a run has no result: the error's kind, what is wrong, and what to do."""

    kind: str
    message: str
    hint: str = ""


@dataclass
class Attempt:
    """A part of a run that may fail without taking the others along; failure: why it did."""

    failure: Failure | None = None


@dataclass(frozen=True)
class Run:
    """One run folder.

    resumed  an earlier attempt in it did not finish
    finished the same command ended in it before: its results are there, nothing is done again
    damaged  (path, what is wrong with it) of what tolerant reading could not read
    """

    folder: Path
    resumed: bool = False
    finished: bool = False
    damaged: list[tuple[str, str]] = field(default_factory=list, compare=False, repr=False)

    @classmethod
    def earlier(cls, folder: Path, **asked: Any) -> Run:
        """The folder as an earlier attempt at the same left it, if there was one; nothing is written.

        asked  as for ``start``. Raises RunError if the folder holds something else.
        """
        status = status_of_the_same(folder, make_head(**asked))
        return cls(folder, resumed=status is not None, finished=status == "done")

    @classmethod
    @contextmanager
    def start(
        cls,
        folder: Path | None,
        *,
        topic: str,
        verb: str,
        argv: Sequence[str] | None = None,
        call: Mapping[str, Any] | None = None,
    ) -> Iterator[Run]:
        """Open a new folder (one in ``runs/`` if None), an unfinished or a finished one.

        call  what the work is asked for: an attempt with another one is not the same; None: the program's arguments

        The status becomes 'done' when the block ends, 'interrupted' on Ctrl-C,
        'failed' on an error. Raises RunError if the folder holds something else,
        or another process writes into it.
        """
        folder = new_folder(topic, verb) if folder is None else folder
        asked: dict[str, Any] = {"topic": topic, "verb": verb, "argv": argv, "call": call}
        cls.earlier(folder, **asked)  # no lock file is left in a folder of something else
        with locked(folder):
            run, head = cls.earlier(folder, **asked), make_head(**asked)
            if run.finished:
                yield run
                return
            write_head(folder, head, "running")
            try:
                yield run
            except KeyboardInterrupt:
                write_head(folder, head, "interrupted")
                raise
            except BaseException:
                write_head(folder, head, "failed")
                raise
            use_umask(folder)
            write_head(folder, head, "done")

    def child(self, name: str) -> Run:
        """A folder of one arm, which its steps may be continued in."""
        return Run(self.folder / "arms" / name, resumed=True, damaged=self.damaged)

    @property
    def head(self) -> dict[str, Any]:
        """What ``run.json`` says. Raises RunError for a folder that is no run, or one of another schema version."""
        return read_head(self.folder)

    @property
    def model_path(self) -> Path:
        """Where the changed model is."""
        return self.folder / "model"

    @property
    def changed_model(self) -> str:
        """The name that the changed model is loaded by. Raises RunError where it was removed."""
        if not self.model_path.is_dir():
            raise RunError(
                f"{self.folder} holds no model/: it was removed, or nothing was applied to the end here",
                hint="remove outcome.json beside it, if it is there, and the same command makes both again",
            )
        return str(self.model_path)

    @property
    def checkpoints(self) -> Path:
        """Where a training run keeps its checkpoints."""
        return self.folder / "checkpoints"

    # -- records -----------------------------------------------------------------

    def has(self, stage: str) -> bool:
        """Whether ``<stage>.json`` is there."""
        return (self.folder / f"{stage}.json").exists()

    def save(self, stage: str, record: Record) -> Record:
        """Write ``<stage>.json`` and its evidence, if it has any; returns the record, so that calls can be chained."""
        path = self.folder / f"{stage}.json"
        if path.exists() and not self.resumed:
            raise RunError(f"{path} exists already: files of a run are written once", hint="use another --run folder")
        self._add_samples(stage, record)
        return self.update(stage, record)

    def update(self, stage: str, record: Record) -> Record:
        """The same for a summary that grows with the run."""
        content = json.dumps(record.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False)
        write_atomic(self.folder / f"{stage}.json", content + "\n")
        return record

    def load(self, stage: str, kind: type[Record]) -> Record:
        """Read a record back, evidence included. Raises RunError if it is missing, damaged or of another schema."""
        path = self.folder / f"{stage}.json"
        text = self._text(path.name)
        if text is None:
            raise RunError(f"{self.folder} holds no {path.name}", hint="the command that writes it did not run here")
        try:
            data = json.loads(text)
            _check_schema(data, kind)
            if _has_rows(kind):
                data["evidence"] = self._rows(stage)
            return kind.model_validate(data)
        except (ValueError, TypeError, KeyError) as error:
            raise RunError(
                f"{path} is no readable {kind.__name__.lower()}",
                hint="it was damaged, or another version wrote it: remove it, and the run makes it again",
            ) from error

    def load_if_sound(self, stage: str, kind: type[Record]) -> Record | None:
        """The same for a reader that shows what there is: None for what is missing, or damaged and noted as such."""
        if not self.has(stage):
            return None
        try:
            return self.load(stage, kind)
        except RunError as error:
            self._note(f"{stage}.json", error.__cause__ or error)
            return None

    def cached(self, stage: str, kind: type[Record], make: Callable[..., Record], *args: Any, **kwargs: Any) -> Record:
        """The result of a step: read back if it is there, else made and saved."""
        return self.load(stage, kind) if self.has(stage) else self.save(stage, make(*args, **kwargs))

    def save_forecast(self, forecast: Record) -> Record:
        """Write ``forecast.json``. Raises RunError once a step has been taken: no forecast after the fact."""
        if (self.folder / "steps.jsonl").exists():
            raise RunError(
                f"{self.folder} has trained already: a forecast comes before", hint="use another --run folder"
            )
        path = self.folder / "forecast.json"
        if path.exists():
            raise RunError(f"{path} exists already: a forecast is written once", hint="use another --run folder")
        return self.save("forecast", forecast)

    def load_forecast(self, kind: type[Record]) -> Record:
        """Read ``forecast.json`` back. Raises RunError where there is none, or one of another schema."""
        if not self.has("forecast"):
            raise RunError(
                f"{self.folder} holds no forecast", hint="make one before training: `conviction apply --forecast`"
            )
        return self.load("forecast", kind)

    def write_text(self, name: str, text: str) -> Path:
        """A derived file: a page, a traceback."""
        write_atomic(self.folder / name, text)
        return self.folder / name

    # -- rows --------------------------------------------------------------------

    def append_step(self, record: Mapping[str, Any]) -> None:
        """Add one line to ``steps.jsonl``; what is not a finite number becomes null."""
        path = self.folder / "steps.jsonl"
        with storage_errors(f"writing {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(finite_or_null(record), ensure_ascii=False, allow_nan=False) + "\n")

    def cut_steps(self, step: int) -> None:
        """Drop the lines of steps that will be taken again."""
        text = self._text("steps.jsonl")
        if text is not None:
            write_atomic(self.folder / "steps.jsonl", "".join(f"{line}\n" for line in text.split("\n")[:step]))

    def steps_if_sound(self) -> list[dict[str, Any]]:
        """The lines of ``steps.jsonl``; a last line that was cut off by a kill is left out without a word."""
        return self._lines_if_sound("steps.jsonl")

    def samples_if_sound(self, kind: type[Record]) -> list[tuple[str, Record]]:
        """(stage, sample) of all evidence."""
        samples = []
        for line in self._lines_if_sound("samples.jsonl"):
            try:
                stage = str(line.pop("stage", ""))
                samples.append((stage, kind.model_validate(line)))
            except (ValueError, AttributeError) as error:
                self._note("samples.jsonl", error)
                break
        return samples

    # -- one configuration, one failure -------------------------------------------

    def check_config(self, config: Mapping[str, Any]) -> None:
        """Keep what a run was begun with. Raises RunError where the folder was begun with something else."""
        text = json.dumps(config, indent=1, ensure_ascii=False, default=str) + "\n"
        kept = self._text("config.json")
        if kept is None:
            write_atomic(self.folder / "config.json", text)
            return
        begun = self._config(kept)
        now = json.loads(text)
        if other := [name for name in now if begun.get(name) != now[name]]:
            raise RunError(
                f"{self.folder} was begun with another design: {', '.join(other)} differ",
                hint="give --run a new folder",
            )

    def config(self) -> dict[str, Any]:
        """What the run was begun with; empty where nothing was kept. Raises RunError for a damaged file."""
        kept = self._text("config.json")
        return {} if kept is None else self._config(kept)

    @contextmanager
    def recording_failure(self, log: Callable[[str], None]) -> Iterator[Attempt]:
        """What goes wrong in the block is its result, and no more: torch, disk and network fail in their own ways.

        The traceback of what is not one of our own errors is kept in ``failure.txt``.
        """
        attempt = Attempt()
        try:
            yield attempt
        except ConvictionError as error:
            attempt.failure = Failure(kind=type(error).__name__, message=str(error), hint=error.hint)
        except Exception as error:
            place = self.write_text("failure.txt", traceback.format_exc())
            hint = f"the traceback is in {place}"
            attempt.failure = Failure(kind=type(error).__name__, message=str(error), hint=hint)
        if attempt.failure is not None:
            log(f"{self.folder.name}: {attempt.failure.message}")

    # -- inside ------------------------------------------------------------------

    def _config(self, text: str) -> dict[str, Any]:
        try:
            return dict(json.loads(text))
        except (ValueError, TypeError) as error:
            raise RunError(f"{self.folder / 'config.json'} is damaged", hint="give --run a new folder") from error

    def _text(self, name: str) -> str | None:
        path = self.folder / name
        if not path.exists():
            return None
        with storage_errors(f"reading {path}"):
            try:
                return path.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise RunError(f"{path} is damaged: it is not UTF-8", hint="the run has to be made again") from error

    def _note(self, name: str, error: BaseException) -> None:
        first = str(error).strip().splitlines() or [type(error).__name__]
        wrong = f"{error.error_count()} fields do not fit" if isinstance(error, ValidationError) else first[0]
        self.damaged.append((str(self.folder / name), wrong))

    def _lines_if_sound(self, name: str) -> list[dict[str, Any]]:
        try:
            text = self._text(name)
            *whole, last = ("" if text is None else text).split("\n")
            rows = [json.loads(line) for line in whole if line]
        except (ValueError, RunError) as error:
            self._note(name, error)
            return []
        with suppress(ValueError):  # cut off by a kill
            rows.append(json.loads(last))
        return rows

    def _add_samples(self, stage: str, record: BaseModel) -> None:
        evidence: Sequence[BaseModel] = getattr(record, "evidence", ()) if _has_rows(type(record)) else ()
        if not evidence:
            return
        # Samples of this stage without its record are left over from an interrupted save.
        kept = [line for line in self._samples() if line["stage"] != stage]
        new = [{"stage": stage, **s.model_dump(mode="json")} for s in evidence]
        text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in kept + new)
        write_atomic(self.folder / "samples.jsonl", text)

    def _rows(self, stage: str) -> list[dict[str, Any]]:
        """The evidence of a record. Raises RunError where it was removed."""
        rows = [line for line in self._samples() if line.pop("stage") == stage]
        if not rows:
            raise RunError(
                f"{self.folder / 'samples.jsonl'}, with the rows behind {stage}.json, is missing or lacks them",
                hint=f"remove {self.folder / f'{stage}.json'}, too, and the same command makes both again",
            )
        return rows

    def _samples(self) -> list[dict[str, Any]]:
        text = self._text("samples.jsonl")
        try:
            # not splitlines(): that would also cut at U+2028, which JSON leaves inside strings
            rows = [json.loads(line) for line in (text or "").split("\n") if line]
            return [{"stage": row["stage"], **row} for row in rows]
        except (ValueError, TypeError, KeyError) as error:
            raise RunError(
                f"{self.folder / 'samples.jsonl'} is damaged: it holds the rows behind every number of this folder",
                hint="remove it and the .json files beside it but run.json, and the run makes them again",
            ) from error


def _check_schema(data: Any, kind: type[BaseModel]) -> None:
    """Raise ValueError for a record of another version."""
    field = kind.model_fields.get("schema_version")
    if field is not None and data["schema_version"] != field.default:
        raise ValueError(f"schema version {data['schema_version']}, this program reads {field.default}")


def _has_rows(kind: type[BaseModel]) -> bool:
    """Whether a record's evidence is kept row by row in ``samples.jsonl``, and not in its own file."""
    return "evidence" in kind.model_fields and bool(kind.model_fields["evidence"].exclude)
