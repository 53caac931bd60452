"""Other settings on the same gradients: the map of learning rate and β, without training."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from conviction.core.options import build, list_fields, parse_options
from conviction.errors import InputError

__all__ = ["POINTS", "check_size", "default_sweep", "parse_sweep"]

POINTS = 7
MOST = 400


def parse_sweep(intervention: Any, texts: Sequence[str]) -> list[dict[str, Any]]:
    """``["beta=0.01,0.05", "learning_rate=1e-6..1e-3"]`` to the options of every setting in the grid.

    A range is walked in equal ratios, ``POINTS`` of them, ``1e-6..1e-3:5`` in five. Raises InputError for
    what cannot be swept, a value that the field does not take, or a grid of over 400 settings.
    """
    kind = type(intervention)
    known = [field.name for field in list_fields(kind) if field.sweepable]
    axes: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not values.strip():
            raise InputError(f"sweep '{text}' is not key=values", hint="write --sweep beta=0.01,0.05,0.1")
        if name not in known:
            raise InputError(
                f"'{name}' cannot be swept: the gradients were taken with what it is", hint=f"sweep {', '.join(known)}"
            )
        if name in axes:
            raise InputError(f"'{name}' is swept twice", hint="give all of its values in one --sweep")
        parts = [part for part in _parts(name, values) if part.strip()]
        check_size(len(parts))
        axes[name] = [parse_options([kind], [f"{name}={part}"])[0][name] for part in parts]
    check_size(math.prod(len(values) for values in axes.values()))
    grid = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())] if axes else []
    for options in grid:
        build(intervention, options)  # raises InputError for what does not go together
    return grid


def check_size(count: int) -> None:
    """Raise InputError for more settings than are tried, before they are made: each is a simulation."""
    if count > MOST:
        raise InputError(f"the sweep has {count:,} settings", hint=f"give at most {MOST}")


def _parts(name: str, values: str) -> list[str]:
    first, dots, rest = values.partition("..")
    if not dots:
        return values.split(",")
    last, _, count = rest.partition(":")
    try:
        low, high, points = float(first), float(last), int(count or POINTS)
    except ValueError:
        raise InputError(
            f"range '{values}' of {name} is not two numbers", hint="write 1e-6..1e-3 or 1e-6..1e-3:5"
        ) from None
    if not 0 < low < high < math.inf or points < 2:
        raise InputError(
            f"range '{values}' of {name} cannot be walked", hint="write two numbers above 0, the smaller first"
        )
    check_size(points)
    return [f"{low * (high / low) ** (k / (points - 1)):.3g}" for k in range(points)]


def default_sweep(options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is tried where the planned settings will not do: slower and faster, on a longer and a shorter leash."""
    rate, beta = options["learning_rate"], options.get("beta")
    rates = [rate * factor for factor in (0.25, 0.5, 1.0, 2.0, 4.0)]
    betas = [beta * factor for factor in (0.2, 1.0)] if beta is not None else [None]
    grid = [{"learning_rate": r} | ({} if b is None else {"beta": b}) for b in betas for r in rates]
    return [g for g in grid if (g["learning_rate"], g.get("beta")) != (rate, beta)]
