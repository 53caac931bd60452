"""The guard for trainers that are not ours: transformers' ``Trainer`` and TRL's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from transformers import TrainerCallback

from conviction.core.protocols import Message
from conviction.models.engine.packing import Ids
from conviction.models.engine.selfcheck import SelfCheck
from conviction.models.engine.torch_engine import TorchEngine
from conviction.models.engine.unpacked import score_unpacked
from conviction.models.hf import HFModel
from conviction.training.guard import Guard, GuardStop
from conviction.training.kept import KeptStates
from conviction.training.monitor import GuardMonitor, Snapshot
from conviction.training.policy import trainable_parameters

FOREIGN = SelfCheck(packed=False, difference=None, tolerance=0.0, noise=0.0, reason="a trainer's model")
CHOSEN = 4  # pairs of the training data whose chosen answers are read
CHOSEN_TOKENS = 64


class GuardCallback(TrainerCallback):  # type: ignore[misc]
    """Stops a trainer before its model breaks, and puts the last healthy weights back.

    ::

        trainer = DPOTrainer(…, callbacks=[guard := GuardCallback()])
        trainer.train()
        if guard.guard_stop:
            print(guard.guard_stop.reasons)

    Reads neutral text, held-out prompts, greedy samples and, where the training
    set has TRL's ``prompt_ids`` and ``chosen_ids``, chosen answers, after every
    optimiser step. Loss and margin are taken from the trainer's log, which is one
    step behind: set ``logging_steps=1`` to have them judged at every step.

    prompts  conversations of your own, for greedy samples; everyday questions are asked besides
    """

    def __init__(
        self,
        guard: Guard | None = None,
        *,
        prompts: Sequence[tuple[Message, ...]] = (),
        log: Callable[[str], None] = print,
    ) -> None:
        self.guard = guard or Guard()
        self.guard_stop: GuardStop | None = None
        self.monitor: GuardMonitor | None = None
        self._prompts = tuple(prompts)
        self._log = log
        self._chosen: list[tuple[Ids, Ids]] = []
        self._chosen_before = 0.0
        self._kept = KeptStates(Snapshot(0, {}))

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Read the model as it is before the first step."""
        del control
        self.guard_stop = None
        model, tokenizer = given["model"], given["processing_class"]
        was_training = model.training
        asked = HFModel(id="policy", engine=TorchEngine(model, tokenizer), check=FOREIGN)
        dataset = getattr(given.get("train_dataloader"), "dataset", None)
        self.monitor = GuardMonitor.begin(
            self.guard,
            asked,
            _logits(model),
            own=self._prompts,
            held_out=(),
            total_steps=state.max_steps,
            step_tokens=_step_tokens(dataset, args),
        )
        self._chosen = _chosen_rows(dataset)
        self._chosen_before = self._chosen_logp(model)
        self._kept = KeptStates(Snapshot.of(0, trainable_parameters(model)))
        model.train(was_training)

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Read, judge, and stop the trainer where a limit is passed."""
        del args
        if self.monitor is None or self.guard_stop is not None:
            return
        model, logged = given["model"], _last_log(state)
        was_training = model.training
        model.eval()
        drop = self._chosen_before - self._chosen_logp(model) if self._chosen else None
        verdict = self.monitor.check(
            state.global_step,
            loss=logged.get("loss", 0.0),
            grad_norm=logged.get("grad_norm", 0.0),
            margin=logged.get("rewards/margins"),
            chosen_drop=drop,
        )
        if verdict.zone == "stop":
            for note in self._kept.give_back(trainable_parameters(model), self.monitor):
                self._log(f"guard: {note}")
            self.guard_stop = GuardStop(
                reasons=verdict.violations or verdict.warnings,
                step=state.global_step,
                restored_step=self._kept.healthy.step,
            )
            control.should_training_stop = True
            self._log(
                f"guard: stopped after step {self.guard_stop.step}: {'; '.join(self.guard_stop.reasons)}; "
                f"the weights are those of step {self.guard_stop.restored_step}"
            )
        elif self.monitor.healthy_sample:
            self._kept.keep(Snapshot.of(state.global_step, trainable_parameters(model)), self.monitor)
        model.train(was_training)

    def _chosen_logp(self, model: Any) -> float:
        """Mean log-prob per token of the chosen answers that are read."""
        values = [value for row in score_unpacked(model, self._chosen) for value in row]
        return math.fsum(values) / max(1, len(values))


def _logits(model: Any) -> Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]:
    def read(ids: torch.Tensor, mask: torch.Tensor, keep: int) -> torch.Tensor:
        rows: torch.Tensor = model(input_ids=ids, attention_mask=mask).logits[:, -keep:]
        return rows

    return read


def _chosen_rows(dataset: Any) -> list[tuple[Ids, Ids]]:
    """Some pairs of a data set that TRL has tokenised; none of another."""
    columns = getattr(dataset, "column_names", None) or ()
    if not hasattr(dataset, "__len__") or not {"prompt_ids", "chosen_ids"} <= set(columns):  # streaming has no length
        return []
    count = len(dataset)
    picked = sorted({i * count // CHOSEN for i in range(min(CHOSEN, count))})
    rows = [dataset[i] for i in picked]
    return [(tuple(row["prompt_ids"]), tuple(row["chosen_ids"][:CHOSEN_TOKENS])) for row in rows]


def _step_tokens(dataset: Any, args: Any) -> float | None:
    """Tokens of a step, about: a chosen and a rejected row of the lengths that are read; None: they are not known."""
    rows = _chosen_rows(dataset)
    if not rows:
        return None
    pairs = args.train_batch_size * args.gradient_accumulation_steps
    return float(2 * pairs * sum(len(prompt) + len(chosen) for prompt, chosen in rows) / len(rows))


def _last_log(state: Any) -> dict[str, float]:
    """The newest logged training metrics; TRL logs numbers, transformers 5 texts of them."""
    for entry in reversed(state.log_history):
        if "loss" in entry:
            numbers: dict[str, float] = {}
            for name, value in entry.items():
                with suppress(TypeError, ValueError):
                    numbers[name] = float(value)
            return numbers
    return {}
