"""Everything that can go wrong, in one tree.

::

    ConvictionError
    ├── InputError            what the user gave cannot be used         (also a ValueError)
    │   ├── TopicError        a topic kit is missing or malformed
    │   ├── ModelNotFoundError no such model, here or on the hub
    │   └── MissingExtraError something wanted is not installed
    ├── ModelError            a model cannot be loaded, or misbehaves   (also a RuntimeError)
    ├── StorageError          the disk refused                          (also an OSError)
    └── RunError              a run folder does not allow this          (also a RuntimeError)
        └── BudgetSpent       no time is left for another arm

Each error says what is wrong and where (``message``) and what to do about it
(``hint``). The command line prints them as an ``error:`` and a ``help:`` line
and exits with 2.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

__all__ = [
    "BudgetSpent",
    "ConvictionError",
    "InputError",
    "MissingExtraError",
    "ModelError",
    "ModelNotFoundError",
    "RunError",
    "StorageError",
    "TopicError",
    "first_line",
    "library_errors",
    "nearest",
    "no_memory",
    "out_of_memory",
]


class ConvictionError(Exception):
    """Root of the tree. ``hint`` is one sentence that tells the user what to do."""

    def __init__(self, message: str, *, hint: str) -> None:
        self.message, self.hint = _whole(message), _whole(hint)
        super().__init__(self.message)


class InputError(ConvictionError, ValueError):
    """What the user gave cannot be used."""


class TopicError(InputError):
    """A topic kit is missing or malformed; names file, line and field."""


class ModelNotFoundError(InputError):
    """No model of this name is known, on disk, or reachable."""


class MissingExtraError(InputError):
    """What was asked for needs a package that is not installed; the hint says which."""


class ModelError(ConvictionError, RuntimeError):
    """A model cannot be loaded, or returned something that is not a probability."""


class StorageError(ConvictionError, OSError):
    """The disk is full, read-only or otherwise refuses a write."""


class RunError(ConvictionError, RuntimeError):
    """A run folder is in a state that does not allow the operation."""


class BudgetSpent(RunError):  # noqa: N818  the reason why an arm was left out
    """The time that a study was given is over."""


def _whole(text: str) -> str:
    """Foreign text in an error may hold halves of characters, which no encoding knows: they stand as escapes."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def nearest(name: str, known: Iterable[str]) -> str:
    """A ready phrase ``did you mean 'x'? `` for the known name closest to ``name``, else ``''``."""
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'? " if close else ""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error, or what it was raised from, means that no memory is left, whichever library passes it on.

    Nothing is imported for that: libraries say it in their own words. Ours may quote a user's.
    """
    text = "" if isinstance(error, ConvictionError) else str(error).lower()
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or getattr(error, "errno", None) == errno.ENOMEM
        or any(words in text for words in ("allocate memory", "out of memory", "bad_alloc", "start new thread"))
        or (error.__cause__ is not None and out_of_memory(error.__cause__))
    )


def first_line(error: BaseException) -> str:
    """The first line of what an error says; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def library_errors() -> Iterator[None]:
    """Turn what any library says of memory at an end, and the panic of one in Rust, into a ModelError.

    One that says it in our words stays. A panic, as of tokenizers over a damaged file, is no Exception in Python.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ == "PanicException":
            raise ModelError(
                f"a library gave up over a file of the model, most likely tokenizer.json ({first_line(error)[:200]})",
                hint="the folder is damaged, or was made to do harm: get a complete copy of the model",
            ) from error
        in_our_words = isinstance(error, ConvictionError) and "memory" in error.message
        if in_our_words or not out_of_memory(error):
            raise
        raise no_memory(error) from error


def no_memory(error: BaseException) -> ModelError:
    """What a user is told where memory is at an end and nothing smaller is tried."""
    return ModelError(
        f"there is no memory left ({first_line(error)[:200]})",
        hint="close other programs, take a smaller model or --dtype bf16, or ask for less at once (rank, batch_size, "
        "token_budget, max_length); with --run FOLDER the same command goes on from what is kept",
    )
