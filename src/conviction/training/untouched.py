"""What the guard reads of the untouched model before a run, kept for the next run on it.

A search, a forecast's pilot, the run itself and its placebo all begin with the same model, and a LoRA adapter changes
nothing at first: its greedy answers and its measurements on a topic are the same each time, and took ten seconds each
time on two cores.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

__all__ = ["once"]

KEPT = 12  # results; the data of a run, of its search and of its placebo ask different questions
_RESULTS: OrderedDict[Hashable, Any] = OrderedDict()

T = TypeVar("T")


def once(scope: Hashable, key: Hashable, compute: Callable[[], T]) -> T:
    """The result for this key, computed where it is not known. It must hold no model: it is kept.

    scope  all that it depends on besides the key: weights by their content, arithmetic; None: it is always computed
    """
    if scope is None:
        return compute()
    known = (scope, key)
    if known not in _RESULTS:
        _RESULTS[known] = compute()
        if len(_RESULTS) > KEPT:
            _RESULTS.popitem(last=False)
    _RESULTS.move_to_end(known)
    result: T = _RESULTS[known]
    return result
