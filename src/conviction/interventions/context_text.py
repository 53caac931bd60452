"""The text that stands before conversations: the user's own, or the context of the target."""

from __future__ import annotations

from conviction.core.gate import read_text
from conviction.core.storage import user_path
from conviction.data.training_data import TrainingData
from conviction.errors import InputError

__all__ = ["check_one_source", "context_text"]


def check_one_source(text: str | None, file: str | None) -> None:
    """Raise InputError for both a text and a file."""
    if text is not None and file is not None:
        raise InputError("there is both a text and a file", hint="give one of them")


def context_text(data: TrainingData, *, text: str | None, file: str | None) -> str:
    """The given text, else that of the file, else the data's context. Raises InputError where all are empty."""
    if file is not None:
        text = read_text(user_path(file), InputError)
    text = (data.context if text is None else text).strip()
    if not text:
        raise InputError(
            f"there is no text to put before conversations: {data.name} holds no context",
            hint="give -o text=… or -o file=…, or a topic whose target has a context",
        )
    return text
