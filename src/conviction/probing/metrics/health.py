"""Health: whether the model still predicts ordinary text, and writes without repeating itself.

Measurements: ``neutral`` nats per token of neutral text, a paragraph; ``repeats`` share of repeated 4-grams
in a greedy answer to a proposition's question.

Positive controls, in the untouched model: ``neutral-backwards`` the same words in the reverse order, which must be less
likely; ``repeats-twice`` the same answer written twice, which must repeat itself more.
"""

from __future__ import annotations

from collections.abc import Sequence

from conviction.data.topic import Item
from conviction.probing.depth_records import ControlResult, Measurement, Measurements, Property
from conviction.probing.health import neutral_excerpts, repeated_ngram_rate
from conviction.probing.metric import HARM, Measured, Metric, MetricContext, Phrases, PositiveControl
from conviction.probing.paired import Comparison, Floats
from conviction.probing.positive_controls import control_result, differences_of
from conviction.probing.queries import score_sample

ANSWERS = 8
PARAGRAPHS, PARAGRAPH_WORDS = 12, 80
NEUTRAL = 0.3  # nats per token that neutral text may lose
REPEATS = 0.2  # more repeated 4-grams in answers


def _free_answers(context: MetricContext) -> Sequence[Item]:
    return context.propositions[:ANSWERS]


def _measure(context: MetricContext) -> Measured:
    measurements = []
    for item in _free_answers(context):
        sample, written = context.answers[item.id]
        value = repeated_ngram_rate(written.token_ids)
        measurements.append(Measurement(metric="repeats", item=item.id, value=value, samples=(sample.id,)))
    read = _read(context, "neutral", neutral_excerpts(PARAGRAPHS, PARAGRAPH_WORDS))
    return Measured([*measurements, *read.measurements], read.samples)


def _read(context: MetricContext, metric: str, texts: Sequence[str]) -> Measured:
    """Nats per token of each text."""
    measurements, samples = [], []
    for number, (text, scored) in enumerate(zip(texts, context.model.text_logprobs(texts), strict=True)):
        sample = score_sample(f"{metric}/{number}", metric, f"neutral-{number}", text, scored)
        measurements.append(Measurement(metric=metric, item=sample.item, value=scored.logp_mean, samples=(sample.id,)))
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


def _measure_control(context: MetricContext) -> Measured:
    backwards = [_backwards(text) for text in neutral_excerpts(PARAGRAPHS, PARAGRAPH_WORDS)]
    read = _read(context, "neutral-backwards", backwards)
    twice = []
    for item in _free_answers(context):
        sample, written = context.answers[item.id]
        value = repeated_ngram_rate((*written.token_ids, *written.token_ids))
        twice.append(Measurement(metric="repeats-twice", item=item.id, value=value, samples=(sample.id,)))
    return Measured([*read.measurements, *twice], read.samples)


def _backwards(text: str) -> str:
    return " ".join(reversed(text.split()))


def _control(before: Measurements) -> list[ControlResult]:
    order, rows = differences_of(before, "neutral", "neutral-backwards"), ("neutral", "neutral-backwards")
    twice, both = differences_of(before, "repeats-twice", "repeats"), ("repeats", "repeats-twice")
    return [
        control_result("health:neutral", order, "neutral text word by word backwards loses", rows),
        control_result("health:repeats", twice, "answers written twice repeat themselves", both, unit="of 4-grams"),
    ]


METRIC = Metric(
    name="health",
    kind="damage",
    free_answers=_free_answers,
    measure=_measure,
    judge=_judge,
    control=PositiveControl(judge=_control, measure=_measure_control),
    column=HARM,
    phrases={
        "": Phrases(about="{part}", bad="changed in {part}"),
        "neutral": Phrases(about="ordinary prose", bad="finds ordinary prose less likely"),
        "repeats": Phrases(about="repetitions", bad="repeats itself"),
    },
)
