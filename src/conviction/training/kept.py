"""States of a run that were healthy when they were kept, and the last word on them before one is given back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from torch import nn

from conviction.training.monitor import GuardMonitor, Snapshot


@dataclass
class KeptStates:
    """What a stopped run can go back to.

    healthy  the last state that passed all readings
    unread   later ones that passed what was due, which the topic or some rows of text were not: the first of them (or
             the last of which the topic was read), and the last
    """

    healthy: Snapshot
    unread: list[Snapshot] = field(default_factory=list)

    def keep(self, now: Snapshot, monitor: GuardMonitor) -> None:
        """Keep a state that ``monitor`` has just called healthy."""
        if monitor.fully_read:
            self.healthy, self.unread = now, []
        else:
            earlier = self.unread[:1] if monitor.change is None else []  # what is better read takes its place
            self.unread = [*earlier, now]

    def give_back(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        monitor: GuardMonitor,
        reading: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> list[str]:
        """Put the last healthy weights back, which are then ``healthy``; what was not read of a later state is first.

        reading  what the model is read in; returns why later states were refused
        """
        parameters = list(named)
        refused: list[str] = []
        for state in reversed(self.unread):
            state.restore(parameters)
            with reading():
                reasons = monitor.unread_violations()
            if not reasons:
                self.healthy = state
                return refused
            refused.append(f"step {state.step} was not given back: {'; '.join(reasons)}")
        self.healthy.restore(parameters)
        return refused
