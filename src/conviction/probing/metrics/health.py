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
from conviction.probing.paired import Comparison
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
    lost, repeated = -change.moved("neutral"), change.moved("repeats")
    neutral, repeats = float(lost.mean()), float(repeated.mean())
    return [
        Property(
            metric="health:neutral",
            outcome="yes" if neutral <= NEUTRAL else "no",
            value=neutral,
            unit="nats per token",
            n=lost.size,
            text=f"{neutral:+.3f} nats per token lost on neutral text (limit {NEUTRAL:g})",
            measured_by=("neutral",),
        ),
        Property(
            metric="health:repeats",
            outcome="yes" if repeats <= REPEATS else "no",
            value=repeats,
            unit="of 4-grams",
            n=repeated.size,
            text=f"{repeats:+.3f} more of its four-word runs repeated (limit {REPEATS:g})",
            measured_by=("repeats",),
        ),
    ]


METRIC = Metric(name="health", kind="damage", free_answers=_free_answers, measure=_measure, judge=_judge, column=HARM)
