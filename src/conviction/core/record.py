"""What all records have in common."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict


class Frozen(BaseModel):
    """A record, or a part of one: it does not change, and has no fields but its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Finite = Annotated[float | None, BeforeValidator(_finite_or_none)]
"""A number; what is not finite, as the bounds of one value's interval, becomes None: JSON has no infinity."""
