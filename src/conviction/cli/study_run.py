"""What the commands `study` and `compare` share: how models are loaded, and how a result is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from conviction.cli.options import EXIT_FINDINGS, load_named
from conviction.errors import RunError
from conviction.views.text import Format, log

if TYPE_CHECKING:
    from conviction.core.protocols import LanguageModel
    from conviction.core.run import Run
    from conviction.studies.records import Study

__all__ = ["loader", "shown"]


@contextmanager
def shown(form: Format) -> Iterator[Callable[[Study, Path], None]]:
    """Gives what takes a study's result, which is shown, with its page, once its run folder is closed.

    Where arms are missing the run stays unfinished: the same command tries them again.
    """
    from conviction.reporting.page import report as build
    from conviction.views.study import show_study

    taken: list[tuple[Study, Path]] = []

    def take(result: Study, folder: Path) -> None:
        taken.append((result, folder))
        if any(arm.judgement is None for arm in result.arms):
            raise typer.Exit(EXIT_FINDINGS)

    try:
        yield take
    finally:
        for result, folder in taken:
            show_study(result, form)
            log(f"every number: {folder}/study.json, and one folder an arm in {folder}/arms")
            log(f"page: {build(folder)}")
            if missing := [arm.name for arm in result.arms if arm.judgement is None]:
                log(f"not judged: {', '.join(missing)}; to try again: the same command with --run {folder}")


def loader(run: Run, backend: str, device: str, dtype: str, trust_remote_code: bool) -> Callable[[str], LanguageModel]:
    """Loads in one dtype, chosen once: an arm in another than the untouched model would differ by rounding."""
    known = _known_dtype(run) if dtype == "auto" else dtype

    def load(name: str) -> LanguageModel:
        nonlocal known
        loaded = load_named(name, backend, device, known or "auto", trust_remote_code)
        known = known or _askable(loaded.describe().get("dtype"))
        return loaded

    return load


def _known_dtype(run: Run) -> str | None:
    """In which dtype a study that is resumed was begun."""
    try:
        return _askable(run.config()["model"]["dtype"])
    except (RunError, KeyError, TypeError):
        return None


def _askable(dtype: Any) -> str | None:
    """The dtype, if --dtype knows it: quantised weights have others."""
    from conviction.models.devices import KNOWN

    return dtype if dtype in KNOWN else None
