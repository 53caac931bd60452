"""Memory that is at an end while a model computes: an error that says what was done, and what to reduce."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from conviction.errors import ConvictionError, ModelError, first_line, out_of_memory

__all__ = ["memory_errors"]


@contextmanager
def memory_errors(doing: str, *, reduce: str) -> Iterator[None]:
    """Turn what torch, numpy and the system say of memory into a ModelError. reduce: what to make smaller."""
    try:
        yield
    except ConvictionError:
        raise
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise ModelError(
            f"no memory is left for {doing} ({first_line(error)[:200]})",
            hint=f"{reduce}, load the model with --dtype bf16, take a smaller one, or close other programs",
        ) from error
