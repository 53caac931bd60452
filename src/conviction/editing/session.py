"""What ROME and MEMIT share: from facts to requests, and from an edited model to what is reported of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from conviction.core.context import RunContext
from conviction.core.storage import storage_errors, user_path
from conviction.data.facts import Fact
from conviction.data.training_data import TrainingData, paragraphs
from conviction.editing.covariance import covariances
from conviction.editing.generation_check import BaselineAnswers, GenerationCheck, baseline, check
from conviction.editing.requests import beginnings
from conviction.editing.scores import EditScores, FactReading, read_facts, score_edits, with_former_ends
from conviction.editing.sites import Site, find_sites
from conviction.errors import InputError, ModelError
from conviction.models.copies import weights_hash
from conviction.models.delta import Delta, edited, save_edited
from conviction.models.hf import HFModel
from conviction.probing.health import neutral_level, neutral_text
from conviction.training.guard import Guard, GuardStop

__all__ = ["EditResult", "Session", "begin", "finish"]

BEGINNINGS = 4
SHOWN = 5
UNCHANGED = 1e-4  # nats per token: less is no edit


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
class EditResult:
    """An edited model and what was measured of the edit."""

    model: HFModel
    verdict: str
    report: tuple[tuple[str, str], ...]
    guard_stop: GuardStop | None
    notes: tuple[str, ...]
    evidence: dict[str, Any]


def finish(
    session: Session,
    delta: Delta,
    *,
    id: str,
    where: str,
    done: int,
    guard_stop: GuardStop | None,
    checks: Sequence[GenerationCheck],
) -> EditResult:
    """Verify the edit, save it, and say what it did. Raises ModelError for one that changed nothing.

    done  so many of the session's facts were written, the first ones
    """
    seen = [one for one in checks if one.readings]
    moved = edited(session.model, delta, id=id, check=False)
    facts, before = session.facts[:done], session.before[:done]
    after = read_facts(moved, facts)
    if done and max(abs(b.target - a.target) for b, a in zip(before, after, strict=True)) < UNCHANGED:
        raise ModelError(
            "the edit changed nothing: no target became likelier or less likely",
            hint="its update is lost in the rounding of the weights: try --dtype fp32, more steps or a larger clamp",
        )
    old, new, drop = score_edits(before), score_edits(after), session.neutral_drop(moved)
    evidence = {
        "scores": {"before": _finite(old), "after": _finite(new)},
        "neutral_drop": drop,
        "checks": [one.evidence() for one in seen],
        "facts": [
            {"statement": f.prompt, "target": f.target, "before": vars(b), "after": vars(a)}
            for f, b, a in zip(facts, before, after, strict=True)
        ],
    }
    report = [
        ("facts", f"{done} of {len(session.facts)} written, {where}"),
        *_lines(old, new),
        ("neutral text", f"{-drop:+.3f} nats per token (limit -{session.guard.max_neutral_drop:g})"),
        *((("answers", seen[-1].summary()),) if seen else ()),
        *((f.prompt, f"{b.says!r} → {a.says!r}") for f, b, a in list(zip(facts, before, after, strict=True))[:SHOWN]),
    ]
    if session.ctx.run is not None:
        save_edited(session.model, delta, session.ctx.run.model_path)
        moved.source = str(session.ctx.run.model_path.resolve())
    return EditResult(
        model=moved,
        verdict=_verdict(guard_stop, within=drop <= session.guard.max_neutral_drop),
        report=tuple(report),
        guard_stop=guard_stop,
        notes=session.notes,
        evidence=evidence,
    )


def _verdict(guard_stop: GuardStop | None, *, within: bool) -> str:
    if guard_stop:
        return "stopped by the guard"
    return "written, neutral text within the guard's limit" if within else "written, past the limit: the guard was off"


def _lines(old: EditScores, new: EditScores) -> list[tuple[str, str]]:
    names = {
        "efficacy": "new end likelier than the old one",
        "paraphrase": "the same in other words",
        "neighbourhood": "true end of neighbours still likelier",
    }
    lines = []
    for field, meaning in names.items():
        a, b = getattr(old, field), getattr(new, field)
        if not math.isnan(b):
            lines.append((field, f"{a:.0%} → {b:.0%} ({meaning})"))
    return lines


def _finite(scores: EditScores) -> dict[str, float | None]:
    """As JSON, which has no NaN."""
    return {name: None if math.isnan(value) else value for name, value in vars(scores).items()}


def _says(text: str, target: str) -> bool:
    return text.casefold().startswith(target.casefold())


def _text(file: str | None) -> list[str]:
    """Ordinary prose: the bundled one, or the user's."""
    if file is None:
        return neutral_text()
    with storage_errors(f"reading {file}"):
        text = user_path(file).read_text(encoding="utf-8")
    return [block for _, block in paragraphs(text)]
