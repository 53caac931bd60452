"""Whether a model may be fetched: only one that the user named, never one that a file names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from conviction.core.wording import printable
from conviction.errors import ModelNotFoundError

__all__ = ["cached_folder", "check_fetching", "may_fetch", "named_by_user", "named_in"]


@dataclass(frozen=True)
class _Source:
    """Where a name was read, and by what the user says yes to it."""

    file: str
    consent: str


_SOURCE: ContextVar[_Source | None] = ContextVar("source of a model's name", default=None)


@contextmanager
def named_in(file: str, *, consent: str = "give --base NAME (in Python base=)") -> Iterator[None]:
    """While it is open, models are named by that file: those that are not on this machine are not fetched.

    consent  by what the user says yes to a NAME
    """
    token = _SOURCE.set(_Source(printable(file), consent))
    try:
        yield
    finally:
        _SOURCE.reset(token)


@contextmanager
def named_by_user() -> Iterator[None]:
    """While it is open, names are the user's again."""
    token = _SOURCE.set(None)
    try:
        yield
    finally:
        _SOURCE.reset(token)


def may_fetch() -> bool:
    """Whether the names that are loaded now are the user's."""
    return _SOURCE.get() is None


def cached_folder(name: str) -> str:
    """The folder of a model in the hub's cache, where it is looked up without a request to the hub.

    Raises ModelNotFoundError for one that is not there and that only a file names; else what the hub's library says.
    """
    from huggingface_hub import snapshot_download

    try:
        return str(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError):  # what the hub's errors derive from: not there, or no id
        check_fetching(name)
        raise


def check_fetching(name: str) -> None:
    """Raise ModelNotFoundError for a model that is not on this machine, where it was a file that named it."""
    source = _SOURCE.get()
    if source is not None:
        shown = printable(name)[:200]
        raise ModelNotFoundError(
            f"{source.file} names the model '{shown}', which is not on this machine",
            hint=f"if you trust it, {source.consent.replace('NAME', shown)}: nothing is fetched for a name that only a "
            "file holds",
        )
