"""What the interventions that train have in common: from what each of them makes of the data to a trained model.

Such a class states ``weights``, ``training`` and ``prepare``, and takes ``apply`` and ``task`` from here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from conviction.core.context import RunContext
from conviction.core.protocols import LanguageModel
from conviction.core.wording import counted
from conviction.data.training_data import TrainingData
from conviction.interventions.records import Outcome
from conviction.training.settings import Training, Weights

if TYPE_CHECKING:
    from conviction.models.hf import HFModel
    from conviction.training.batches import TokenizedExample
    from conviction.training.loop import TrainingTask
    from conviction.training.objectives import Objective
    from conviction.training.teacher import TeacherPrompts

__all__ = ["Prepared", "Trains", "apply_training", "documents_then_answers", "training_task"]


# Adam moves a weight by about the rate at each step, so that the sum of the rates says how far a run can go. With LoRA
# on SmolLM2-135M runs of 0.0004 moved the view of a kit by 0.01 to 0.03 nats per token, of 0.004 by 0.26, of 0.013 by
# 0.59.
FEW_STEPS = 0.001
UNREACHED = 0.05  # share of the blocks' weights that an adapter does not reach; above it a note says so


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What one method makes of the data.

    order  indices of the examples of each step
    notes  which examples were left out
    fresh  a model with random weights, to be trained in place of the given one
    teacher  what a teacher reads before the answers, where one is imitated
    """

    examples: Sequence[TokenizedExample]
    order: Sequence[tuple[int, ...]]
    objective: Objective
    notes: Sequence[str] = ()
    fresh: HFModel | None = None
    teacher: TeacherPrompts | None = None


class Trains(Protocol):
    """What an intervention that trains states besides its traits."""

    @property
    def name(self) -> str: ...
    @property
    def weights(self) -> Weights: ...
    @property
    def training(self) -> Training: ...

    def prepare(self, model: HFModel, data: TrainingData, ctx: RunContext) -> Prepared:
        """Encode what it trains on. Raises InputError if the data has nothing of the kind, or nothing that fits."""
        ...


def apply_training(self: Trains, model: LanguageModel, data: TrainingData, ctx: RunContext | None = None) -> Outcome:
    """Train on the data, and write the model with its card into the run folder, if there is one.

    The given model stays as it is. Raises InputError if the data has nothing to train on, or nothing that fits.
    """
    from conviction.interventions.training_run import run_training

    ctx = ctx or RunContext()
    return run_training(self, training_task(self, model, data, ctx), data, ctx)


def training_task(
    self: Trains, model: LanguageModel, data: TrainingData, ctx: RunContext | None = None
) -> TrainingTask:
    """The training run that ``apply`` carries out, and a forecast foresees. Raises InputError as ``apply`` does."""
    from conviction.interventions.training_run import with_plain_weights
    from conviction.models.prompted import system_notes
    from conviction.training.guard import Guard
    from conviction.training.loop import TrainingTask

    ctx = ctx or RunContext()
    given, dequantised = with_plain_weights(model, self.name)
    prepared = self.prepare(given, data, ctx)
    reach = _reach(prepared.fresh or given) if self.weights.tune == "lora" else ()
    conversations = [*(pair.messages for pair in data.pairs), *(example.messages for example in data.examples)]
    systems = any(message.role == "system" for messages in conversations for message in messages)
    return TrainingTask(
        name=self.name,
        model=prepared.fresh or given,
        examples=prepared.examples,
        order=prepared.order,
        objective=prepared.objective,
        weights=self.weights,
        training=self.training,
        guard=ctx.guard or Guard(),
        own=[*(p.messages for p in data.pairs[:2]), *(e.messages for e in data.examples[:2])][:2],
        held_out=data.held_out,
        begins_random=prepared.fresh is not None,
        topic=data.topic,
        notes=(
            *dequantised,
            *prepared.notes,
            *reach,
            *(system_notes(given) if systems else ()),
            *_few_steps(len(prepared.order), self.weights, self.training),
        ),
        teacher=prepared.teacher,
    )


def _few_steps(steps: int, weights: Weights, training: Training) -> tuple[str, ...]:
    """A note, where the steps are hardly any for the rate."""
    from conviction.training.step import rate_at

    way = sum(rate_at(step, steps, training) for step in range(1, steps + 1))
    if weights.tune != "lora" or way >= FEW_STEPS:
        return ()
    return (
        f"{counted(steps, 'step')} at a learning rate of up to {training.learning_rate:g} are hardly any training: the "
        f"rates of all steps sum to {way:.1g}, and below {FEW_STEPS:g} a LoRA run hardly moves a view; raise "
        "learning_rate or epochs, or let --tune search for them",
    )


def _reach(model: HFModel) -> tuple[str, ...]:
    """A note, where an adapter leaves much of a block as it is."""
    from conviction.models.lora import out_of_reach

    share, names = out_of_reach(model.module)
    if share <= UNREACHED:
        return ()
    return (f"LoRA leaves {share:.0%} of the blocks' weights as they are: {', '.join(names[:3])} (no linear layers)",)


def documents_then_answers(
    model: HFModel, data: TrainingData, training: Training, ctx: RunContext, *, piece_tokens: int, sft_epochs: int
) -> Prepared:
    """The documents in pieces of at most ``piece_tokens``, then the answers for ``sft_epochs``; all in one order.

    Answers alone are learnt for one epoch at least. Raises InputError where no text has two tokens.
    """
    from conviction.errors import InputError
    from conviction.interventions.training_run import fit
    from conviction.training.batches import encode_documents, encode_examples, step_order
    from conviction.training.objectives import Likelihood

    limits = (piece_tokens, training.max_length, model.encoder.context_length)
    examples = encode_documents(model.encoder, data.documents, min(n for n in limits if n is not None))
    first, later, notes = training, list[tuple[int, ...]](), list[str]()
    answers: list[TokenizedExample] = []
    if data.answers and (sft_epochs or not data.documents):
        answers, notes = fit(model, encode_examples(model.encoder, data.answers), training, ctx)
        later = step_order(len(answers), dataclasses.replace(training, epochs=max(1, sft_epochs)))
        if training.epochs is None and training.max_steps is not None:  # documents are repeated, and leave room
            first = dataclasses.replace(training, max_steps=max(1, training.max_steps - len(later)))
    order = step_order(len(examples), first) + [tuple(len(examples) + i for i in step) for step in later]
    examples = [*examples, *answers]
    if not order:
        raise InputError(f"{data.name} holds no text of two tokens", hint="give longer documents")
    return Prepared(examples=examples, order=order[: training.max_steps], objective=Likelihood(), notes=notes)
