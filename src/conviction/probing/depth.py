"""Measure all that shows how deep a change in a model goes: ``measure_depth(model, topic)``.

Only the test split is asked, and by every metric of ``METRICS`` in the same two calls: plain questions
first, then what depends on their answers (challenges are put only where there is something to doubt). The untouched
model is also put to the metrics' positive controls: they tell which metrics can be read on it.
What a number means stands with its metric, in ``probing/metrics/``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from conviction.core.context import RunContext
from conviction.core.protocols import LanguageModel, Progress
from conviction.data.implications import implications
from conviction.data.topic import Item, Topic
from conviction.errors import InputError
from conviction.probing.depth_records import Measurements
from conviction.probing.metric import ANSWER_TOKENS, Kind, Measured, Metric, MetricContext, PositiveControl
from conviction.probing.metrics import load_metrics
from conviction.probing.queries import ProbeQuery, evidence, score
from conviction.probing.records import Sample
from conviction.probing.sampled import sample_answers


def measure_depth(
    model: LanguageModel,
    topic: Topic,
    *,
    base: Measurements | None = None,
    kinds: Sequence[Kind] | None = None,
    ctx: RunContext | None = None,
) -> Measurements:
    """Measurements of one model.

    base   the untouched model's measurements; None: this is the untouched model, which is asked more: for some
           metrics it is the yardstick
    kinds  only metrics of these kinds: 'change' alone tells where a model stands, not how firmly

    Raises InputError if the topic has no test items.
    """
    metrics = load_metrics(kinds)
    stage = (ctx or RunContext()).progress
    context = _context(model, topic, base, stage)
    controls = [metric.control for metric in metrics] if base is None else []
    asking: list[Metric | PositiveControl] = [*metrics, *controls]
    queries = _distinct(query for one in asking for query in one.queries(context))
    context = replace(context, scores=score(model, queries, stage("scoring answers")))
    follow_ups = _distinct(query for metric in metrics for query in metric.follow_ups(context))
    if follow_ups:
        context = replace(context, scores=context.scores | score(model, follow_ups, stage("challenging")))
    samples = evidence(model, [*queries, *follow_ups], context.scores)
    wanted = {item.id for metric in metrics for item in metric.free_answers(context)}
    every = [*context.propositions, *context.paraphrases, *context.facts, *context.implications]
    items = [item for item in every if item.id in wanted]
    if items:
        written = sample_answers(model, items, max_new_tokens=ANSWER_TOKENS, progress=stage("writing answers"))
        context = replace(context, answers={sample.item: (sample, answer) for sample, answer in written})
        samples += [sample for sample, _ in written]
    measured = [one.measure(context) for one in asking]
    return _controlled(_record(model, topic, measured, samples), controls)


def _record(
    model: LanguageModel, topic: Topic, measured: Sequence[Measured], samples: Sequence[Sample]
) -> Measurements:
    return Measurements(
        model=model.id,
        topic=topic.name,
        target=topic.target,
        measurements=tuple(m for part in measured for m in part.measurements),
        provenance={"topic_sha256": topic.digest, "model": model.describe(), "split": "test"},
        evidence=(*samples, *(sample for part in measured for sample in part.samples)),
    )


def measure_reference_controls(
    model: LanguageModel, topic: Topic, base: Measurements, ctx: RunContext | None = None
) -> Measurements:
    """What positive controls measure on a model that was trained towards the target.

    base  the untouched model's measurements
    """
    context = _context(model, topic, base, (ctx or RunContext()).progress)
    measured = [metric.control.measure_reference(context) for metric in load_metrics()]
    return _record(model, topic, measured, ())


def with_reference(untouched: Measurements, reference: Measurements) -> Measurements:
    """The untouched model's measurements, and those of a reference that was trained from it; controls judged anew."""
    both = untouched.model_copy(update={"measurements": (*untouched.measurements, *reference.measurements)})
    return _controlled(both, [metric.control for metric in load_metrics()])


def _controlled(measured: Measurements, controls: Iterable[PositiveControl]) -> Measurements:
    return measured.model_copy(update={"controls": tuple(one for c in controls for one in c.judge(measured))})


def _context(
    model: LanguageModel, topic: Topic, base: Measurements | None, progress: Callable[[str], Progress | None]
) -> MetricContext:
    def held_out(*roles: Any) -> tuple[Item, ...]:
        return tuple(item for item in topic.of_role(*roles) if item.split == "test")

    propositions = held_out("target")
    if not propositions:
        raise InputError(
            f"topic '{topic.name}' has no test items",
            hint='give some propositions "split": "test": depth is measured there',
        )
    return MetricContext(
        model=model,
        topic=topic,
        propositions=propositions,
        paraphrases=held_out("paraphrase"),
        facts=held_out("neighbour", "control"),
        implications=held_out("implication") or implications(topic),
        decisions=held_out("decision"),
        base=base,
        progress=progress,
    )


def _distinct(queries: Iterable[ProbeQuery]) -> list[ProbeQuery]:
    """Each query once, in the order in which the metrics ask."""
    distinct: dict[tuple[str, str], ProbeQuery] = {}
    for query in queries:
        if distinct.setdefault((query.condition, query.item.id), query) != query:
            raise ValueError(f"two metrics ask '{query.condition}' of item '{query.item.id}' in different words")
    return list(distinct.values())
