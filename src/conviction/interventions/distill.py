"""Context distillation: the model that reads a context teaches the one that does not."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from conviction.core.context import RunContext
from conviction.core.options import fill_fields, flat_fields, setting
from conviction.core.protocols import LanguageModel, Query, chat
from conviction.core.wording import counted
from conviction.data.training_data import Document, PreferencePair, TrainingData
from conviction.errors import InputError
from conviction.interventions.context_text import check_one_source, context_text
from conviction.interventions.records import Outcome, PlaceboKind, SearchSpace
from conviction.interventions.trained import Prepared, training_task
from conviction.training.settings import Training, Weights

if TYPE_CHECKING:
    from conviction.models.hf import HFModel
    from conviction.training.batches import TokenizedExample
    from conviction.training.loop import TrainingResult, TrainingTask

__all__ = ["Distill"]

PAIRS_TO_ANCHORS = 2  # pairs in a step for an anchor
ANCHOR_TOKENS = 48  # of a neutral paragraph its beginning, of an own answer at most
REQUESTS = (  # none that the guard samples
    "Write a short birthday greeting for a colleague.",
    "Explain how a rainbow forms.",
    "Give me three tips for learning a language.",
    "What is a library for?",
    "Write an e-mail that asks for an appointment.",
    "How does a candle burn?",
    "Describe your favorite season.",
    "What is the difference between a violin and a guitar?",
    "Tell me a story about a lost umbrella.",
    "How do I plant a tree?",
    "List some things that are found in a kitchen.",
    "Why do ships float?",
    "What is the capital of Italy?",
    "How many months are there in a year?",
    "What is the opposite of big?",
    "What color is snow?",
    "Which animal says moo?",
    "What is two plus three?",
    "What do bees make?",
    "Is fire hot or cold?",
)


@flat_fields
@dataclass(frozen=True, kw_only=True)
class Distill:
    """Predict what the untouched model predicts after the target's context, without the context.

    Context distillation (Askell et al. 2112.00861, Snell et al. 2209.15189): the loss is KL(teacher || student) over
    the whole vocabulary, at every token of both answers of the pairs. Anchors, of which the untouched model alone is
    the teacher, keep the rest: facts of the topic that both sides accept, and neutral text.
    """

    name: ClassVar[str] = "distill"
    changes: ClassVar[str] = "weights (LoRA adapter, or all)"
    needs: ClassVar[str] = "pairs, and a context (a topic's target has one), or text or file"
    costs: ClassVar[str] = "a training run before; nothing at run time"
    trains: ClassVar[bool] = True
    forecastable: ClassVar[bool] = True
    cost_rank: ClassVar[int] = 75
    placebo: ClassVar[PlaceboKind | None] = "context"
    search: ClassVar[SearchSpace] = {"learning_rate": (3e-4, 1.5e-4), "strength": (2.0, 1.3, 1.0)}

    text: str | None = setting(None, "what the teacher reads; none: the target pole's context")
    file: str | None = setting(None, "a file with what the teacher reads")
    strength: float = setting(
        1.3,
        "the teacher's logits are base + strength · (context - base); 1: those after the context",
        above=0,
        at_most=10,
        sweepable=True,
    )
    anchor_weight: float = setting(
        3.0, "weight of a token whose prediction is to stay; 0: no anchors", at_least=0, at_most=1000
    )
    neutral: int = setting(12, "neutral paragraphs among the anchors", at_least=0, at_most=50)
    own_answers: int = setting(
        20, "answers of the untouched model to everyday requests among the anchors", at_least=0, at_most=len(REQUESTS)
    )
    weights: Weights = field(default_factory=Weights)
    training: Training = field(default_factory=lambda: Training(learning_rate=6e-4, epochs=4, batch_size=6, warmup=0.2))

    def __init__(self, **fields: Any) -> None:
        fill_fields(self, fields)
        check_one_source(self.text, self.file)

    task = training_task

    def apply(self, model: LanguageModel, data: TrainingData, ctx: RunContext | None = None) -> Outcome:
        """Train on the pairs, and report what the teacher does with them and how much of it the student does.

        The given model stays as it is. Raises InputError if there are no pairs or no context, or none that fits.
        """
        from conviction.interventions.training_run import run_training

        ctx = ctx or RunContext()
        task = training_task(self, model, data, ctx)
        return run_training(self, task, data, ctx, report=lambda result: _report(self, task, result))

    def prepare(self, model: HFModel, data: TrainingData, ctx: RunContext) -> Prepared:
        """The pairs with what the teacher reads before each, and the anchors. Raises InputError as ``apply`` does."""
        from conviction.interventions.training_run import fit
        from conviction.models.prompted import system_notes, with_system
        from conviction.training.batches import encode_pairs, step_order
        from conviction.training.objectives import Divergence
        from conviction.training.teacher import TeacherPrompts

        if not data.pairs:
            raise InputError(f"{data.name} holds no preference pairs", hint="give rows of prompt, chosen, rejected")
        text = context_text(data, text=self.text, file=self.file)
        with_context = [replace(pair, messages=with_system(text, pair.messages)) for pair in data.pairs]
        read = {e.id: e for e in encode_pairs(model.encoder, with_context)}
        limit = model.encoder.context_length
        fitting = [pair for pair in data.pairs if limit is None or read[pair.id].longest <= limit]
        if not fitting:
            raise InputError(f"no pair fits {model.id}'s {limit} tokens together with the context", hint="shorten it")
        pairs, notes = fit(model, encode_pairs(model.encoder, fitting), self.training, ctx)
        if (left := len(data.pairs) - len(fitting)) > 0:
            notes.append(f"{left} of {counted(len(data.pairs), 'pair')} do not fit with the context, left out")
        endings = {pair.id: len(model.encoder.encode_ending(pair.messages)) for pair in fitting}
        anchors = self._anchors(model, data)
        if not anchors and self.anchor_weight:
            notes.append("there are no anchors: nothing keeps what the context is not about")
        examples = [*pairs, *anchors]
        return Prepared(
            examples=examples,
            order=_with_anchors(step_order(len(pairs), self.training), len(pairs), len(anchors), self.training),
            objective=Divergence(context=text, strength=self.strength, anchor_weight=self.anchor_weight),
            notes=(*notes, *system_notes(model)),
            teacher=TeacherPrompts(
                (*(read[pair.id].prompt for pair in pairs), *(anchor.prompt for anchor in anchors)),
                (*(endings[pair.id] for pair in pairs), *(0 for _ in anchors)),
                self.strength,
            ),
        )

    def _anchors(self, model: HFModel, data: TrainingData) -> list[TokenizedExample]:
        """Facts of the train split that are not taught, with both answers; neutral paragraphs; answers of its own."""
        from conviction.training.batches import encode_documents, encode_pairs
        from conviction.training.drift import unread_paragraphs

        if not self.anchor_weight:
            return []
        taught = {pair.messages for pair in data.pairs}
        items = () if data.topic is None else data.topic.of_role("neighbour", "control")
        facts = [
            PreferencePair(item.id, chat(item.question), item.answers["true"], item.answers["false"])
            for item in items
            if item.split == "train" and chat(item.question) not in taught
        ]
        encoded = encode_pairs(model.encoder, facts)
        for i, paragraph in enumerate(unread_paragraphs(self.neutral)):
            encoded += encode_documents(model.encoder, [Document(f"neutral-{i}", paragraph)], ANCHOR_TOKENS)[:1]
        encoded += _own_answers(model, REQUESTS[: self.own_answers])
        most = min(n for n in (self.training.max_length, model.encoder.context_length, math.inf) if n is not None)
        return [replace(example, weight=self.anchor_weight) for example in encoded if example.longest <= most]


def _with_anchors(
    order: Sequence[tuple[int, ...]], pairs: int, anchors: int, training: Training
) -> list[tuple[int, ...]]:
    """Steps of pairs with half as many anchors in each, so that all steps are alike; anchors come in turn, shuffled.

    Anchors follow the pairs in the numbering.
    """
    share = min(anchors, math.ceil(training.examples_per_step / PAIRS_TO_ANCHORS))
    turns = itertools.count()
    waiting: list[int] = []
    steps = []
    for step in order:
        if len(waiting) < share:
            again = np.random.default_rng((training.seed, next(turns), 1)).permutation(anchors)
            waiting += [pairs + int(i) for i in again if pairs + int(i) not in waiting]
        steps.append((*step, *waiting[:share]))
        del waiting[:share]
    return steps


def _own_answers(model: HFModel, requests: Sequence[str]) -> list[TokenizedExample]:
    """What the untouched model writes, greedily: there a student would drift into loops, unseen in given answers."""
    from conviction.training.batches import TokenizedExample

    asked = [m for m in map(chat, requests) if model.fits(Query(m, ()), room=ANCHOR_TOKENS)]
    written = model.generate(asked, max_new_tokens=ANCHOR_TOKENS)
    return [
        TokenizedExample(f"own-{i}", model.encoder.encode_prompt(messages), (answer.token_ids,))
        for i, (messages, answer) in enumerate(zip(asked, written, strict=True))
        if answer.token_ids
    ]


def _report(distill: Distill, task: TrainingTask, result: TrainingResult) -> Mapping[str, Any]:
    """Mean gaps of the training pairs, nats per token: untouched, of the teacher, and of the student."""
    scores = result.teacher.values()
    gaps = {
        "untouched": _gap([one.untouched for one in scores]),
        "context": _gap([one.context for one in scores]),
        "teacher": _gap([one.teacher for one in scores]),
        "student": _gap(_means(task, result)),
    }
    wanted, reached = gaps["teacher"] - gaps["untouched"], gaps["student"] - gaps["untouched"]
    share = reached / wanted if wanted > 0 else None
    with_context = gaps["context"] - gaps["untouched"]
    dial = f"; at strength {distill.strength:g} {gaps['teacher']:+.3f}: {wanted:+.3f}" if distill.strength != 1 else ""
    teacher = (
        f"gap of {counted(len(scores), 'training pair')} {gaps['untouched']:+.3f}, with the context "
        f"{gaps['context']:+.3f} nats per token: {with_context:+.3f}{dial}"
    )
    learned = f"{gaps['student']:+.3f}: {reached:+.3f}"
    learned += (
        f", {share:.0%} of its teacher's" if share is not None else "; its teacher does not move towards the target"
    )
    numbers = {f"gap_{name}_nats": gap for name, gap in gaps.items()}
    return {
        "report": (("teacher", teacher), ("student", learned)),
        "evidence": {"teacher": {"pairs": len(scores), **numbers, "share_reached": share}},
    }


def _means(task: TrainingTask, result: TrainingResult) -> list[list[float]]:
    """The student's log-probs of each pair's answers without the turn's end, per token, nats."""
    if task.teacher is None:
        return []
    rows = []
    for i in result.teacher:
        example, ending = task.examples[i], task.teacher.endings[i]
        rows.append([(example.prompt, answer[: len(answer) - ending]) for answer in example.answers])
    scores = result.model.computed([row for pair in rows for row in pair])
    return [[math.fsum(scores[row]) / len(row[1]) for row in pair] for pair in rows]


def _gap(means: Sequence[Sequence[float]]) -> float:
    """Mean over pairs of log p(chosen) - log p(rejected), each per token of its answer, nats."""
    return math.fsum(chosen - rejected for chosen, rejected in means) / len(means)
