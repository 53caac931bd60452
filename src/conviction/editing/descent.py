"""Settings of the search for values, without anything that computes."""

from __future__ import annotations

from dataclasses import dataclass

from conviction.core.options import check_settings, setting

__all__ = ["Descent"]


@dataclass(frozen=True, kw_only=True)
class Descent:
    """How values are searched for."""

    steps: int = setting(15, "steps of Adam for a value", at_least=1)
    step_size: float = setting(0.2, "length of a step, as a share of the residual stream's", above=0)
    clamp_norm_factor: float = setting(
        1.5, "bound on the value's change, as a share of the residual stream's length", above=0
    )
    kl_factor: float = setting(0.0625, "keeps what the model thinks of the subject as such", at_least=0)
    v_weight_decay: float = setting(0.5, "weight of the change's squared length", at_least=0)
    good_enough: float = setting(
        0.1, "stops when half of the contexts are at this loss of the target, nats per token", at_least=0
    )

    def __post_init__(self) -> None:
        check_settings(self)
