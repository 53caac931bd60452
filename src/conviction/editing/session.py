"""What ROME and MEMIT begin with, and what they come to: a model that is read before it is edited, and an edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from conviction.core.context import RunContext
from conviction.core.gate import read_text
from conviction.core.storage import user_path
from conviction.data.facts import Fact
from conviction.data.training_data import TrainingData, paragraphs
from conviction.editing.covariance import covariances
from conviction.editing.generation_check import BaselineAnswers, GenerationCheck, baseline, check
from conviction.editing.requests import beginnings
from conviction.editing.scores import FactReading, read_facts, with_former_ends
from conviction.editing.sites import Site, find_sites
from conviction.errors import InputError
from conviction.models.copies import weights_hash
from conviction.models.delta import Delta
from conviction.models.hf import HFModel
from conviction.probing.health import neutral_level, neutral_text
from conviction.training.guard import Guard, GuardStop

__all__ = ["Edit", "Session", "begin"]

BEGINNINGS = 4


@dataclass(frozen=True)
class Session:
    """A model about to be edited.

    before   its readings of the facts
    neutral  nats per token of neutral text
    asked    questions that the guard looks at the answers to; none under an idle guard
    """

    model: HFModel
    guard: Guard
    facts: tuple[Fact, ...]
    before: tuple[FactReading, ...]
    neutral: float
    asked: tuple[BaselineAnswers, ...]
    sites: tuple[Site, ...]
    contexts: tuple[str, ...]
    texts: tuple[str, ...]
    weights_hash: str
    notes: tuple[str, ...]
    ctx: RunContext

    def moments(self, layers: Sequence[int], *, damped: bool = True) -> dict[int, Tensor]:
        """Covariances of the keys of some layers."""
        chosen = [self.sites[layer] for layer in layers]
        return covariances(
            self.model,
            chosen,
            self.texts,
            damped=damped,
            progress=self.ctx.progress("reading text for covariances"),
            log=self.ctx.log,
        )

    def neutral_drop(self, moved: HFModel) -> float:
        """Nats per token that neutral text has lost."""
        return self.neutral - neutral_level(moved)

    def check(self, moved: HFModel, facts: int, *, written: bool) -> GenerationCheck:
        """The guard's look at a model that holds so many of the facts. An idle guard does not look.

        written  also at what it writes, which takes as long as an edit
        """
        if self.guard.idle:
            return GenerationCheck(facts)
        drop, limit = self.neutral_drop(moved), self.guard.max_neutral_drop
        if not drop <= limit:
            return GenerationCheck(facts, f"neutral text had lost {drop:.2f} nats per token (limit {limit:g})")
        return check(moved, self.asked if written else (), facts)


def begin(model: HFModel, data: TrainingData, *, text: str | None, ctx: RunContext) -> Session:
    """Read the facts as they are. Raises InputError without facts, or if the model says all of them already."""
    if not data.facts:
        raise InputError(
            f"{data.name} holds no facts",
            hint="give rows of prompt, subject, target, or a topic with facts.jsonl",
        )
    guard = ctx.guard or Guard()
    sites = find_sites(model)
    facts = with_former_ends(model, data.facts)
    before = read_facts(model, facts)
    known = [r.fact for f, r in zip(facts, before, strict=True) if _says(r.says, f.target)]
    if len(known) == len(facts):
        raise InputError(
            f"the model says so already: {known[0]} and {len(known) - 1} more",
            hint="an edit needs a target that is not the model's answer; `conviction probe` first",
        )
    kept = [(f, r) for f, r in zip(facts, before, strict=True) if r.fact not in known]
    notes: tuple[str, ...] = (f"left out, the model says so already: {', '.join(known)}",) if known else ()
    contexts, texts = tuple(beginnings(model, BEGINNINGS)), tuple(_text(text))
    asked = () if guard.idle else baseline(model, [f for f, _ in kept], guard)
    if not asked and not guard.idle:
        notes += ("what it writes is not looked at: no question fits its context",)
    return Session(
        model=model,
        guard=guard,
        asked=asked,
        facts=tuple(f for f, _ in kept),
        before=tuple(r for _, r in kept),
        neutral=neutral_level(model),
        sites=tuple(sites),
        contexts=contexts,
        texts=texts,
        weights_hash=weights_hash(model.module),
        notes=notes,
        ctx=ctx,
    )


@dataclass(frozen=True, kw_only=True)
class Edit:
    """What a method wrote.

    done    so many of the session's facts, the first ones
    where   which blocks were written to, in words; settings: what was chosen, besides
    checks  the guard's looks at it
    """

    delta: Delta
    done: int
    where: str
    checks: Sequence[GenerationCheck]
    settings: Mapping[str, Any] = field(default_factory=dict)
    guard_stop: GuardStop | None = None


def _says(text: str, target: str) -> bool:
    return text.casefold().startswith(target.casefold())


def _text(file: str | None) -> list[str]:
    """Ordinary prose: the bundled one, or the user's."""
    if file is None:
        return neutral_text()
    return [block for _, block in paragraphs(read_text(user_path(file), InputError))]
