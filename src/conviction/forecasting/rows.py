"""Whose gradients are taken: the answers that are trained, those that are held out, and text that should not move."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from conviction.core.protocols import chat
from conviction.data.topic import Topic
from conviction.data.training_data import PreferencePair
from conviction.forecasting.gradients import Row
from conviction.models.hf import HFModel
from conviction.training.drift import KEEP, WIDTH, neutral_rows
from conviction.training.loop import TrainingTask

__all__ = ["HeldOutPair", "Rows", "choose_examples", "held_out_pairs", "number_rows"]

FACTS = 8  # of each kind
NEUTRAL = 3  # pieces of neutral text with gradients of their own; the guard reads more, which costs it less


@dataclass(frozen=True)
class HeldOutPair:
    """A question with the wanted answer and the other; role as in a topic."""

    pair: PreferencePair
    role: str


@dataclass(frozen=True)
class Rows:
    """Rows and where they stand.

    chosen     the task's examples that have gradients of their own, n of them
    examples   [n, a] rows of their answers
    place      of every example of the task, which of ``examples`` it is, or which stands in for it
    asked      [m, 2] rows of the questions
    neutral    rows of neutral text, the last tokens of some pieces
    """

    rows: tuple[Row, ...]
    examples: Tensor
    chosen: tuple[int, ...]
    place: tuple[int, ...]
    asked: Tensor
    neutral: Tensor
    unsampled_examples: int

    def order(self, steps: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
        """Steps of the task's examples as steps of ``examples``."""
        return [tuple(self.place[i] for i in step) for step in steps]


def held_out_pairs(topic: Topic, *, seed: int = 0) -> list[HeldOutPair]:
    """The topic's test split, and some of its facts, whose true answer should stay where it is."""
    asked = [
        HeldOutPair(PreferencePair(i.id, chat(i.question), i.answers[topic.target], i.answers[topic.other]), i.role)
        for i in topic.of_role("target", "paraphrase")
        if i.split == "test"
    ]
    for role in ("neighbour", "control"):
        facts = topic.of_role(role)
        drawn = random.Random(seed).sample(facts, min(FACTS, len(facts)))  # noqa: S311  no secret
        asked += [
            HeldOutPair(PreferencePair(i.id, chat(i.question), i.answers["true"], i.answers["false"]), role)
            for i in drawn
        ]
    return asked


def choose_examples(task: TrainingTask, *, first: int, most: int) -> list[int]:
    """Those of the task's examples that get gradients: of the first steps, then others drawn, ``most`` in all."""
    used = list(dict.fromkeys(i for step in task.order for i in step))
    early = list(dict.fromkeys(i for step in task.order[:first] for i in step))
    rest = used[len(early) :]
    drawn = random.Random(task.training.seed).sample(rest, min(len(rest), max(0, most - len(early))))  # noqa: S311  no secret
    return sorted([*early, *drawn])


def number_rows(model: HFModel, task: TrainingTask, chosen: Sequence[int], asked: Sequence[HeldOutPair]) -> Rows:
    """Number all rows; equal ones are there once. Examples that are not ``chosen`` are stood in for.

    Questions are encoded as ``probe`` scores them, without the end-of-turn token that training adds.
    """
    number: dict[Row, int] = {}

    def row(prompt: tuple[int, ...], answer: tuple[int, ...]) -> int:
        return number.setdefault((prompt, answer), len(number))

    used = {i for step in task.order for i in step}
    place = {i: k for k, i in enumerate(chosen)}
    others = [i for i in range(len(task.examples)) if i not in place]
    place |= {i: k % len(chosen) for k, i in enumerate(others)}
    examples = torch.tensor([[row(e.prompt, a) for a in e.answers] for e in (task.examples[i] for i in chosen)])
    questions = []
    for question in asked:
        pair = question.pair
        prompt, answers = model.encoder.encode(pair.messages, (pair.chosen, pair.rejected))
        questions.append([row(prompt, answer) for answer in answers])
    pieces = neutral_rows(model.encoder.encode_text, NEUTRAL, WIDTH)
    neutral = [row(ids[:-KEEP] or ids[:1], ids[-KEEP:] if len(ids) > KEEP else ids[1:]) for ids in pieces]
    return Rows(
        rows=tuple(number),
        examples=examples,
        chosen=tuple(chosen),
        place=tuple(place[i] for i in range(len(task.examples))),
        asked=torch.tensor(questions, dtype=torch.long).view(-1, 2),
        neutral=torch.tensor(neutral),
        unsampled_examples=len(used) - len(chosen),
    )
