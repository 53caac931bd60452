"""What the untouched model wrote becomes unlikely: the judge's surprise, on questions of the train split.

The answers are drawn from the untouched model, so that their mean loss of log-prob per token estimates
KL(untouched || now) where the model speaks, which neutral text alone does not show: after 17 steps of SFT on `obesity`
at a rate of 5e-4 (SmolLM2-135M) it was 0.09 on neutral text, and 0.40 on the answers that the judge asks about.
"""

from __future__ import annotations

from conviction.core.options import Option
from conviction.core.protocols import Query, chat
from conviction.core.statistics import mean_test
from conviction.probing.depth_records import Measurement
from conviction.probing.metric import Measured, MetricContext
from conviction.probing.metrics.locality import OWN_TOKENS, SURPRISE
from conviction.probing.paired import Comparison
from conviction.probing.queries import ProbeQuery
from conviction.training.sensors.sensor import Sensor, Threshold, TopicReading

__all__ = ["SENSOR"]

OWN = "own"  # measurement, condition and key of the answer
MEANING = "nats per token that the untouched model's own answers to facts of the kit may be shown to lose"
LIMIT = Option(name="max_own_drop", default=SURPRISE, meaning=MEANING, above=0)
MESSAGE = "the untouched model's own answers lost {value:.2f} nats per token at least (limit {limit:g})"


def _queries(context: MetricContext) -> list[ProbeQuery]:
    """Every fact's question with the answer that the untouched model gives it, where both fit the model."""
    model = context.model
    chats = [(fact, chat(fact.question)) for fact in context.facts]
    asked = [(fact, messages) for fact, messages in chats if model.fits(Query(messages, ()), room=OWN_TOKENS)]
    answers = model.generate([messages for _, messages in asked], max_new_tokens=OWN_TOKENS, seed=0)
    written = [(fact, messages, answer.text.strip()) for (fact, messages), answer in zip(asked, answers, strict=True)]
    return [
        ProbeQuery(OWN, fact, messages, {OWN: text})
        for fact, messages, text in written
        if text and model.fits(Query(messages, (text,)))
    ]


def _measure(context: MetricContext) -> Measured:
    scored = {fact.id: context.scores.get((OWN, fact.id, OWN)) for fact in context.facts}
    return Measured(
        [Measurement(metric=OWN, item=i, value=one.logp_mean) for i, one in scored.items() if one is not None]
    )


def _read(change: Comparison) -> float | None:
    """The lower end of the mean's 95 % interval, which the judge holds against the limit, too; 0: no loss is shown.

    None: fewer than two facts were answered.
    """
    lost = -change.moved(OWN)
    return max(0.0, mean_test(lost).interval.low) if lost.size > 1 else None


SENSOR = Sensor(
    name="own_words",
    judge=Threshold(limit=LIMIT, message=MESSAGE),
    stops=True,
    read_topic=TopicReading(queries=_queries, measure=_measure, read=_read),
    needs_health=True,
    show=lambda drop: f"own words {0.0 - drop:+.2f}",
    curve="own words lost",
)
