"""Facts near the topic or far from it lose their lead over false answers: the judge's locality, on the train split."""

from __future__ import annotations

from conviction.core.options import Option
from conviction.core.statistics import ALPHA
from conviction.probing.metrics.locality import FACTS, judge_facts, measure_facts
from conviction.probing.paired import Comparison
from conviction.probing.queries import plain_queries
from conviction.training.sensors.sensor import Sensor, Threshold, TopicReading

__all__ = ["SENSOR"]

MEANING = "nats per token of their lead over false answers that facts of the topic's kit may lose"
LIMIT = Option(name="max_facts_drop", default=FACTS, meaning=MEANING, above=0)
MESSAGE = "facts of the kit lost {value:.2f} nats per token (limit {limit:g})"


def _read(change: Comparison) -> float | None:
    """What neighbours or controls lost, the more of the two, where the judge's test shows a loss; None: no facts."""
    parts = judge_facts(change)
    if not parts:
        return None
    shown = [p.value for p in parts if p.value is not None and p.p_value is not None and p.p_value < ALPHA]
    return max([0.0, *(-value for value in shown)])


SENSOR = Sensor(
    name="facts_drop",
    judge=Threshold(limit=LIMIT, message=MESSAGE),
    stops=True,
    read_topic=TopicReading(
        queries=lambda context: plain_queries(context.facts),
        measure=measure_facts,
        read=_read,
    ),
    needs_health=True,
    show=lambda drop: f"facts {-drop:+.2f}",
)
