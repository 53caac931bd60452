"""Where a verb writes, if anywhere: a new run folder, one that is continued, or one that is finished and only read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from conviction.core.context import RunContext, main_process
from conviction.core.protocols import LanguageModel
from conviction.core.run import Run
from conviction.core.run_lines import lost_rows
from conviction.core.wording import printable
from conviction.errors import InputError, RunError, library_errors
from conviction.verbs.inputs import Load, ModelLike, as_folder, as_model, loading

__all__ = ["Place"]

Record = TypeVar("Record", bound=BaseModel)


@dataclass(frozen=True, kw_only=True)
class Place:
    """A run folder that is not open yet, and what the work in it is asked for.

    folder  None: nothing is written, or what ``ctx`` has open is written into
    call    what tells this work from another, for the run's ``run.json``
    """

    folder: Path | None
    ctx: RunContext
    topic: str
    verb: str
    call: Mapping[str, Any]

    @classmethod
    def of(cls, run: Any, ctx: RunContext, *, topic: str, verb: str, call: Mapping[str, Any]) -> Place:
        """Where ``run=`` says. Raises InputError where ``ctx`` has another run open, or for what is no folder."""
        if run is not None and ctx.run is not None:
            raise InputError("there is both a run and one in ctx", hint="give one of them")
        return cls(folder=None if run is None else as_folder(run), ctx=ctx, topic=topic, verb=verb, call=call)

    def finished(self, stage: str, kind: type[Record]) -> Record | None:
        """The result, where the same work ended in this folder before.

        Raises RunError for a folder that holds something else.
        """
        if self.folder is None:
            return None
        try:
            run = Run.earlier(self.folder, topic=self.topic, verb=self.verb, call=self.call)
        except RunError:
            if main_process():
                raise
            return None  # the first process is about to write the head, or to refuse the folder for all
        if not run.finished or not run.has(stage):  # a damaged file that was removed is made again
            return None
        self.ctx.log(f"read from the finished run in {self.folder}")
        for gone in lost_rows(self.folder):
            self.ctx.log(f"note: {printable(gone)} is gone: the rows behind the numbers beside it cannot be looked at")
        return run.load(stage, kind)

    def kept(self, stage: str, kind: type[Record]) -> Record | None:
        """The result, where an earlier attempt at the same work left it in this folder.

        Of a run that ``ctx`` has open nothing is known but its records: they may be of other work, and are not read.
        """
        if self.folder is None or not (run := Run(self.folder)).has(stage):
            return None
        return run.load(stage, kind)

    def result(
        self,
        stage: str,
        kind: type[Record],
        model: ModelLike,
        load: Load | None,
        make: Callable[[LanguageModel, RunContext], Record],
    ) -> Record:
        """What ``make`` gives and saves, or what was saved before by the same work.

        The model is loaded before anything is written: where its name is wrong no folder is left.
        """
        if (known := self.finished(stage, kind)) is not None:
            return known
        loaded = as_model(model, loading(load, self.ctx))
        with self.open() as own:
            known = self.kept(stage, kind)
            return known if known is not None else make(loaded, own)

    @contextmanager
    def open(self) -> Iterator[RunContext]:
        """The context with its run folder, if there is one; of several processes only the first writes its head.

        Memory that comes to an end in the work is a ModelError, whichever library it was that said so.
        """
        with library_errors(), self._open() as ctx:
            yield ctx

    @contextmanager
    def _open(self) -> Iterator[RunContext]:
        if self.folder is None:
            yield self.ctx
            return
        if not main_process():
            yield self.ctx.into(Run(self.folder, resumed=True))
            return
        with Run.start(self.folder, topic=self.topic, verb=self.verb, call=self.call) as run:
            if run.resumed:
                self.ctx.log(f"resuming the unfinished run in {run.folder}")
            yield self.ctx.into(run)
