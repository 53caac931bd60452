"""Health: whether the model still predicts ordinary text, and writes without repeating itself.

Measurements: ``neutral`` nats per token of neutral text, a paragraph; ``repeats`` share of repeated 4-grams
in a greedy answer to a proposition's question.
"""

from __future__ import annotations

from collections.abc import Sequence

from conviction.data.topic import Item
from conviction.probing.depth_records import Measurement, Property
from conviction.probing.health import neutral_excerpts, repeated_ngram_rate
from conviction.probing.metric import HARM, Measured, Metric, MetricContext
from conviction.probing.paired import Comparison, Floats
from conviction.probing.queries import score_sample

ANSWERS = 8
PARAGRAPHS, PARAGRAPH_WORDS = 12, 80
NEUTRAL = 0.3  # nats per token that neutral text may lose
REPEATS = 0.2  # more repeated 4-grams in answers


def _free_answers(context: MetricContext) -> Sequence[Item]:
    return context.propositions[:ANSWERS]


def _measure(context: MetricContext) -> Measured:
    measurements, samples = [], []
    for item in _free_answers(context):
        sample, written = context.answers[item.id]
        value = repeated_ngram_rate(written.token_ids)
        measurements.append(Measurement(metric="repeats", item=item.id, value=value, samples=(sample.id,)))
    texts = neutral_excerpts(PARAGRAPHS, PARAGRAPH_WORDS)
    for number, (text, scored) in enumerate(zip(texts, context.model.text_logprobs(texts), strict=True)):
        sample = score_sample(f"neutral/{number}", "neutral", f"neutral-{number}", text, scored)
        measurements.append(
            Measurement(metric="neutral", item=sample.item, value=scored.logp_mean, samples=(sample.id,))
        )
        samples.append(sample)
    return Measured(measurements, samples)


def _judge(change: Comparison) -> list[Property]:
    neutral, repeats = -change.moved("neutral"), change.moved("repeats")
    return [
        _loss("neutral", neutral, NEUTRAL, "nats per token", "nats per token lost on neutral text"),
        _loss("repeats", repeats, REPEATS, "of 4-grams", "more of its four-word runs repeated"),
    ]


def _loss(metric: str, lost: Floats, limit: float, unit: str, what: str) -> Property:
    value = float(lost.mean())
    return Property(
        metric=f"health:{metric}",
        outcome="yes" if value <= limit else "no",
        value=value,
        unit=unit,
        n=lost.size,
        text=f"{value:+.3f} {what} (limit {limit:g})",
        measured_by=(metric,),
    )


METRIC = Metric(name="health", kind="damage", free_answers=_free_answers, measure=_measure, judge=_judge, column=HARM)
