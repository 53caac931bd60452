"""What changes while a run goes on: put into a checkpoint after a step, and taken up again after a kill."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from conviction.core.gate import validate
from conviction.core.record import Frozen
from conviction.core.run import Run
from conviction.core.wording import counted, printable
from conviction.errors import ConvictionError, RunError
from conviction.training.checkpoint import load_latest, save_checkpoint
from conviction.training.guard import GuardStop
from conviction.training.kept import KeptStates
from conviction.training.monitor import GuardMonitor, Snapshot, like, whole
from conviction.training.policy import recompute_activations, trainable_parameters
from conviction.training.sharding import gathered
from conviction.training.step import Stepper

UNREAD = "unread-"


class _Saved(Frozen):
    """What a checkpoint keeps besides tensors."""

    digest: str
    healthy_step: int
    unread_steps: tuple[int, ...]
    tokens: int
    limits_passed: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float
    token_budget: int
    checkpointing: bool
    monitor: dict[str, Any]


@dataclass
class TrainState:
    """A run between two steps."""

    stepper: Stepper
    monitor: GuardMonitor
    kept: KeptStates
    steps: int = 0
    tokens: int = 0
    guard_stop: GuardStop | None = None
    limits_passed: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)  # earlier, where earlier attempts took their time

    @property
    def seconds(self) -> float:
        """Time spent, that of earlier attempts up to their last checkpoint included."""
        return time.monotonic() - self.began

    def keep(self, step: int) -> None:
        """Keep a state that passed what was read of it."""
        self.kept.keep(Snapshot.of(step, trainable_parameters(self.stepper.policy)), self.monitor)

    def give_back(self) -> None:
        """Put the last healthy weights back; what was not read of a later state is read first."""
        policy = self.stepper.policy

        @contextmanager
        def reading() -> Iterator[None]:
            with policy.autocast(), gathered(policy):
                yield

        self.notes += self.kept.give_back(trainable_parameters(policy), self.monitor, reading)

    def save(self, run: Run, step: int, digest: str, *, write: bool) -> None:
        """Write a checkpoint. Every process must call it (tensors may be cut over them), one should ``write``."""
        named = trainable_parameters(self.stepper.policy)
        moments = _bare(self.stepper.optimizer).state
        tensors: dict[str, torch.Tensor] = {f"weights/{name}": whole(p).cpu() for name, p in named}
        tensors |= {f"healthy/{name}": t for name, t in self.kept.healthy.tensors.items()}
        tensors |= {f"{UNREAD}{k}/{name}": t for k, s in enumerate(self.kept.unread) for name, t in s.tensors.items()}
        tensors |= {f"optimizer/{k}/{name}": whole(v).cpu() for name, p in named for k, v in moments[p].items()}
        state = {
            "digest": digest,
            "healthy_step": self.kept.healthy.step,
            "unread_steps": [state.step for state in self.kept.unread],
            "tokens": self.tokens,
            "limits_passed": list(self.limits_passed),
            "notes": self.notes,
            "seconds": self.seconds,
            "token_budget": self.stepper.token_budget,
            "checkpointing": self.stepper.checkpointing,
            "monitor": self.monitor.state(),
        }
        if write:
            save_checkpoint(run.checkpoints, step, tensors, state)

    def resume(self, run: Run, digest: str, log: Callable[[str], None]) -> int:
        """Go on from the newest sound checkpoint; the step it was made after, 0 for a new run.

        Raises RunError if the folder holds a run of another ``digest``, or a checkpoint that does not fit. Lines of
        ``steps.jsonl`` that are gone are noted.
        """
        latest = load_latest(run.checkpoints, log)
        if latest is None:
            run.cut_steps(0)
            return 0
        step, tensors, state = latest
        hint = "remove that folder, and training begins anew"
        saved = validate(_Saved, state, f"{printable(run.checkpoints)}, step {step}", RunError, hint=hint)
        if saved.digest != digest:
            raise RunError(f"{run.folder} holds a run with other settings or data", hint="use another folder")
        try:
            self._take_up(step, saved, _by_room(tensors))
        except ConvictionError:
            raise
        except Exception as error:  # tensors and readings of another model can fail in any way
            problem = f"the checkpoint of step {step} does not fit ({type(error).__name__}: {printable(error)})"
            raise RunError(f"{printable(run.checkpoints)}: {problem}", hint=hint) from error
        log(f"continued after step {step}")
        if (lines := run.cut_steps(step)) < step:
            note = f"steps.jsonl lacks {counted(step - lines, 'step')} of the {step} before the run was continued"
            log(f"note: {note}")
            self.notes.append(f"{note}: they were removed or damaged")
        return step

    def _take_up(self, step: int, saved: _Saved, parts: Mapping[str, dict[str, torch.Tensor]]) -> None:
        stepper = self.stepper
        Snapshot(step, parts["weights"]).restore(trainable_parameters(stepper.policy))
        healthy = Snapshot(saved.healthy_step, parts["healthy"])
        unread = [Snapshot(kept, parts[f"{UNREAD}{k}"]) for k, kept in enumerate(saved.unread_steps)]
        self.kept = KeptStates(healthy, unread)
        _load_moments(_bare(stepper.optimizer), parts["optimizer"], dict(trainable_parameters(stepper.policy)))
        self.steps, self.tokens, stepper.token_budget = step, saved.tokens, saved.token_budget
        self.limits_passed = saved.limits_passed
        self.began -= saved.seconds
        self.notes[:] = dict.fromkeys([*saved.notes, *self.notes])
        if saved.checkpointing and not stepper.checkpointing:
            stepper.checkpointing = True
            recompute_activations(stepper.policy)
        self.monitor.load(saved.monitor)


def _by_room(tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """Tensors by what stands before the first slash of their names."""
    rooms: dict[str, dict[str, torch.Tensor]] = {"weights": {}, "healthy": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        room, _, rest = name.partition("/")
        rooms.setdefault(room, {})[rest] = tensor
    return rooms


def _load_moments(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], named: Mapping[str, torch.nn.Parameter]
) -> None:
    """Put AdamW's state back: ``exp_avg/<parameter>``, ``exp_avg_sq/<parameter>``, ``step/<parameter>``."""
    for path, tensor in tensors.items():
        kind, _, name = path.partition("/")
        parameter = named[name]
        optimizer.state[parameter][kind] = tensor if kind == "step" else like(tensor, parameter)


def _bare(optimizer: Any) -> torch.optim.Optimizer:
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner
