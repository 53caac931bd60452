"""The run folder: one folder per run, and its only reader, writer and lock.

Every file appears whole or not at all, and once. ``run.json`` is written when
the run begins and again when it ends: a folder whose status is not 'done' can
be continued, and says so. Weights (``model/``, ``checkpoints/``) are written by
who knows their format, into the places that a run gives.
"""

from __future__ import annotations

import json
import os
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from conviction.core.gate import first_fault, parse_json, read_text, unfit, validate
from conviction.core.names import check_name, inside
from conviction.core.record import Frozen
from conviction.core.run_head import locked, make_head, new_folder, read_head, status_of_the_same, write_head
from conviction.core.run_lines import StagedRow, StepLine, is_step, named_rows, parse_lines, whole_lines
from conviction.core.storage import finite_or_null, storage_errors, use_umask, write_atomic
from conviction.core.wording import counted, printable
from conviction.errors import ConvictionError, RunError, library_errors

Record = TypeVar("Record", bound=BaseModel)

_AGAIN = "it was damaged, or another version wrote it: remove it, and the run makes it again"


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

    def child(self, name: str, *, within: str = "arms") -> Run:
        """A folder of one arm, or one seed, which may be continued in. Raises RunError for what cannot name one."""
        place = f"{within}/{check_name(name, f'one of the {within}', RunError)}"
        return Run(inside(self.folder, place, place, RunError), resumed=True, damaged=self.damaged)

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
        if not os.path.isdir(self.model_path):
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
        return os.path.lexists(self.folder / f"{stage}.json")

    def save(self, stage: str, record: Record) -> Record:
        """Write ``<stage>.json`` and its evidence, if it has any; returns the record, so that calls can be chained."""
        path = self.folder / f"{stage}.json"
        if os.path.lexists(path) and not self.resumed:
            raise RunError(f"{path} exists already: files of a run are written once", hint="use another --run folder")
        self._add_samples(stage, record)
        return self.update(stage, record)

    def update(self, stage: str, record: Record) -> Record:
        """The same for a summary that grows with the run."""
        data = record.model_dump(mode="json")
        if (problem := unfit(data)) is not None:
            where = printable(self.folder / f"{stage}.json")
            raise RunError(f"{where} cannot be written: {problem}", hint="what it was computed from is no measurement")
        content = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)
        write_atomic(self.folder / f"{stage}.json", content + "\n")
        return record

    def load(self, stage: str, kind: type[Record]) -> Record:
        """Read a record back, evidence included. Raises RunError if it is missing, damaged or of another schema."""
        path = self.folder / f"{stage}.json"
        text = self._text(path.name)
        if text is None:
            raise RunError(f"{self.folder} holds no {path.name}", hint="the command that writes it did not run here")
        where = f"{printable(path)} is no readable {kind.__name__.lower()}"
        data = parse_json(text, where, RunError, hint=_AGAIN)
        if not isinstance(data, dict):
            return validate(kind, data, where, RunError, hint=_AGAIN)
        _check_schema(data, kind, where)
        if _has_rows(kind):
            data["evidence"] = self._rows(stage)
        try:
            record = kind.model_validate(data)
        except ValidationError as error:
            of_rows = error.errors()[0]["loc"][:1] == ("evidence",)
            place = printable(self.folder / "samples.jsonl") + f", the rows of {path.name}" if of_rows else where
            raise RunError(f"{place}: {first_fault(error)}", hint=_AGAIN) from error
        if _has_rows(kind):
            self._check_named_rows(stage, data)
        return record

    def load_if_sound(self, stage: str, kind: type[Record]) -> Record | None:
        """The same for a reader that shows what there is: None for what is missing, or damaged and noted as such."""
        if not self.has(stage):
            return None
        try:
            return self.load(stage, kind)
        except RunError as error:
            self._note(f"{stage}.json", error.message)
            return None

    def cached(self, stage: str, kind: type[Record], make: Callable[..., Record], *args: Any, **kwargs: Any) -> Record:
        """The result of a step: read back if it is there, else made and saved."""
        return self.load(stage, kind) if self.has(stage) else self.save(stage, make(*args, **kwargs))

    def save_forecast(self, forecast: Record) -> Record:
        """Write ``forecast.json``. Raises RunError once a step has been taken: no forecast after the fact."""
        if os.path.lexists(self.folder / "steps.jsonl"):
            raise RunError(
                f"{self.folder} has trained already: a forecast comes before", hint="use another --run folder"
            )
        path = self.folder / "forecast.json"
        if os.path.lexists(path):
            raise RunError(f"{path} exists already: a forecast is written once", hint="use another --run folder")
        return self.save("forecast", forecast)

    def load_forecast(self, kind: type[Record]) -> Record:
        """Read ``forecast.json`` back. Raises RunError where there is none, or one of another schema."""
        if not self.has("forecast"):
            raise RunError(
                f"{self.folder} holds no forecast", hint="make one before training: `conviction apply --forecast`"
            )
        return self.load("forecast", kind)

    def copy_from(self, other: Run, *names: str) -> None:
        """Files of another run, where it has them: a folder that is passed on is read without those beside it."""
        for name in names:
            if (text := other._text(name)) is not None:
                write_atomic(self.folder / name, text)

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
            # a link that a stranger left there may lead to any file
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
            with os.fdopen(os.open(path, flags, 0o666), "a", encoding="utf-8") as file:
                file.write(json.dumps(finite_or_null(record), ensure_ascii=False, allow_nan=False) + "\n")

    def cut_steps(self, step: int) -> int:
        """Drop the lines of steps that will be taken again; how many of the steps before have a sound line."""
        text = self._text("steps.jsonl")
        if text is None:
            return 0
        kept = [line for line in text.split("\n") if line][:step]
        write_atomic(self.folder / "steps.jsonl", "".join(f"{line}\n" for line in kept))
        return sum(map(is_step, kept))

    def steps_if_sound(self, taken: int = 0) -> list[dict[str, Any]]:
        """The lines of ``steps.jsonl``; a last line that was cut off by a kill is left out.

        taken  steps of a run that has ended: where fewer are there, they were removed, which is noted as damage
        """
        before, lines = len(self.damaged), self._lines_if_sound("steps.jsonl", StepLine)
        if len(lines) < taken and len(self.damaged) == before:
            self._note("steps.jsonl", f"it lacks {counted(taken - len(lines), 'step')} of {taken}")
        return lines

    def samples_if_sound(self, kind: type[Record]) -> list[tuple[str, Record]]:
        """(stage, sample) of all evidence, up to the first row that cannot be read."""
        samples = []
        for number, line in enumerate(self._lines_if_sound("samples.jsonl"), start=1):
            stage = str(line.pop("stage", ""))
            where = f"{printable(self.folder / 'samples.jsonl')}:{number}"
            try:
                samples.append((stage, validate(kind, line, where, RunError, hint=_AGAIN)))
            except RunError as error:
                self._note("samples.jsonl", error.message)
                break
        return samples

    # -- one configuration, one failure -------------------------------------------

    def check_config(self, config: Mapping[str, Any]) -> None:
        """Keep what a run was begun with. Raises RunError where the folder was begun with something else."""
        text = json.dumps(config, indent=1, ensure_ascii=False, default=str).encode("utf-8", "replace").decode() + "\n"
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
            with library_errors():
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
        where, hint = f"{printable(self.folder / 'config.json')} is damaged", "give --run a new folder"
        begun = parse_json(text, where, RunError, hint=hint)
        if not isinstance(begun, dict):
            raise RunError(f"{where}: a {type(begun).__name__}, not an object with fields", hint=hint)
        return begun

    def _text(self, name: str) -> str | None:
        """A file of the folder, and not one that a link in it leads to; None where there is none."""
        if not os.path.lexists(self.folder / name):
            return None
        path = inside(self.folder, name, "a file of the run", RunError)
        return read_text(path, RunError, hint="the run has to be made again")

    def _note(self, name: str, problem: str) -> None:
        wrong = problem.removeprefix(printable(self.folder / name))
        self.damaged.append(
            (str(self.folder / name), re.sub(r"^:(\d+):", r"line \1:", wrong).removeprefix(": ").strip())
        )

    def _lines_if_sound(self, name: str, kind: type[BaseModel] | None = None) -> list[dict[str, Any]]:
        where, hint = printable(self.folder / name), "the rest of the run can be read"
        try:
            return parse_lines(whole_lines(self._text(name) or ""), where, hint, kind)
        except RunError as error:
            self._note(name, error.message)
            return []

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
        """All rows. Raises RunError where one cannot be read."""
        where = f"{printable(self.folder / 'samples.jsonl')} is damaged"
        hint = "remove it and the .json files beside it but run.json, and the run makes them again"
        return parse_lines(self._text("samples.jsonl") or "", where, hint, StagedRow)

    def _check_named_rows(self, stage: str, data: Mapping[str, Any]) -> None:
        """Raise RunError where a number names rows that are gone."""
        there = {row["id"] for row in data["evidence"]}
        if gone := sorted(named_rows({**data, "evidence": None}) - there):
            raise RunError(
                f"{printable(self.folder / 'samples.jsonl')} lacks {len(gone)} of the rows behind {stage}.json: "
                f"{', '.join(map(printable, gone[:3]))}",
                hint=f"remove {printable(self.folder / f'{stage}.json')}, too, and the same command makes both again",
            )


def _check_schema(data: Mapping[str, Any], kind: type[BaseModel], where: str) -> None:
    """Raise RunError for a record of another version, or one with fields that no file of it has."""
    field = kind.model_fields.get("schema_version")
    if field is not None and (version := data.get("schema_version")) != field.default:
        problem = f"schema version {printable(version)}, this program reads {field.default}"
        raise RunError(f"{where}: {problem}", hint=_AGAIN)
    for name, one in kind.model_fields.items():
        if one.exclude and name in data:
            raise RunError(f"{where}: field '{name}': it is no part of the file", hint=_AGAIN)


def _has_rows(kind: type[BaseModel]) -> bool:
    """Whether a record's evidence is kept row by row in ``samples.jsonl``, and not in its own file."""
    return "evidence" in kind.model_fields and bool(kind.model_fields["evidence"].exclude)
