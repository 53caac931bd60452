"""Ask a model which side it prefers: ``probe(model, topic)``."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

from conviction.core.context import RunContext
from conviction.core.protocols import LanguageModel, Progress
from conviction.data.topic import Item, Topic
from conviction.errors import InputError
from conviction.probing.controls import measure_controls, measure_rescoring, warnings
from conviction.probing.forced_choice import measure_choice
from conviction.probing.gaps import item_rows, summarise
from conviction.probing.health import measure_health
from conviction.probing.queries import TEMPLATES, build_queries, choice_queries, evidence, queries_to_repeat, score
from conviction.probing.records import Health, Sample, Scorecard
from conviction.probing.sampled import sample_answers
from conviction.probing.verdict import with_verdict

SAMPLED_QUESTIONS = 5


def probe(
    model: LanguageModel,
    topic: Topic,
    *,
    quick: bool = False,
    templates: bool = False,
    health: bool = False,
    forced_choice: bool = False,
    ctx: RunContext | None = None,
) -> Scorecard:
    """Measure which pole of ``topic`` the model prefers, by how much, and how sure one can be.

    quick      only the items tagged 'quick', without facts
    templates  also ask under neutral prompt templates and report the spread
    health     also write greedy answers and read the neutral text
    forced_choice  also ask for the letter of the better answer, with the topic's facts as its control
    ctx        who is told of progress

    Gaps are in nats per token, positive towards ``topic.target``. Raises
    InputError if nothing is left to ask, or an answer does not fit the model.
    """
    claims = [i for i in topic.items if not i.is_fact and i.role != "decision"]  # a decision is a metric of depth
    items = [i for i in claims if not quick or "quick" in i.tags]
    facts = [] if quick else [i for i in topic.items if i.is_fact]
    if not any(i.role == "target" for i in items):
        raise InputError(f"topic '{topic.name}' has no item tagged 'quick'", hint="leave --quick out")
    stage = (ctx or RunContext()).progress
    queries = build_queries(topic, items, facts, templates=templates)
    choices = [i for i in topic.items if i.is_fact or (i.role == "target" and i in items)] if forced_choice else []
    queries += choice_queries(choices)
    scores = score(model, queries, stage("scoring answers"))
    again = score(model, queries_to_repeat(queries), fresh=True)
    described = model.describe()
    rescored = measure_rescoring(scores, again, described)
    noise = max(float(described.get("noise_nats", 0.0)), rescored.mean_difference_nats)
    rows = item_rows(topic, items, scores, noise=noise)
    summary = summarise(topic, items, rows, noise=noise)
    controls = measure_controls(topic, items, facts, scores, summary, rescored)
    choice = measure_choice(topic, choices, scores) if forced_choice else None
    samples = _in_pieces(model, evidence(model, queries, scores))
    measured_health, more = _health(model, items, stage) if health else (None, [])
    return Scorecard(
        model=model.id,
        topic=topic.name,
        target=topic.target,
        rows=rows,
        summary=with_verdict(topic, summary, controls, choice),
        controls=controls,
        forced_choice=choice,
        health=measured_health,
        warnings=warnings(summary, controls, described),
        evidence=(*samples, *more),
        provenance={
            **_provenance(topic, described),
            "items": len(items),
            "facts": len(facts),
            "quick": quick,
            "forced_choice": forced_choice,
            "templates": {name: [system, form] for name, system, form in TEMPLATES} if templates else {},
        },
    )


def _health(
    model: LanguageModel, items: Sequence[Item], stage: Callable[[str], Progress | None]
) -> tuple[Health, list[Sample]]:
    """Health of greedy answers to the first questions and of neutral text, and the rows behind it."""
    asked = [i for i in items if i.role == "target"][:SAMPLED_QUESTIONS]
    written = sample_answers(model, asked, progress=stage("writing answers"))
    health, neutral = measure_health(model, written, progress=stage("reading neutral text"))
    return health, [sample for sample, _ in written] + neutral


def _provenance(topic: Topic, described: dict[str, Any]) -> dict[str, Any]:
    return {
        "conviction": version("conviction"),
        "python": platform.python_version(),
        "machine": platform.platform(),
        "topic_sha256": topic.digest,
        "score": "mean log-probability per token, natural logarithm, end-of-turn token not scored",
        "model": described,
    }


def _in_pieces(model: LanguageModel, samples: list[Sample]) -> list[Sample]:
    """The answers to plain questions with their tokens as text, if the model shows its tokenizer."""
    if (tokenizer := getattr(model, "tokenizer", None)) is None:
        return samples
    decode = tokenizer.decode

    def split(sample: Sample) -> Sample:
        return sample.model_copy(update={"pieces": tuple(decode([token]) for token in sample.token_ids)})

    return [split(s) if s.condition == "plain" else s for s in samples]
