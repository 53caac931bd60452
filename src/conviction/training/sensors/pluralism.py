"""The model can no longer state what one of the sides holds: the judge's pluralism, on the train split."""

from __future__ import annotations

from conviction.core.options import Option
from conviction.probing.metrics.pluralism import METRIC
from conviction.probing.paired import Comparison
from conviction.training.sensors.sensor import Sensor, Threshold, TopicReading

__all__ = ["SENSOR"]

P_VALUE = 0.01  # stricter than the judge: a run is read many times, and false stops on half of the battery set it
MEANING = "least p-value of the sign test that more propositions of a side can no longer be stated than newly can"
LIMIT = Option(name="min_pluralism_p", default=P_VALUE, meaning=MEANING, at_least=0, at_most=1)
MESSAGE = "the model can no longer state what a side holds (sign test: p = {value:.2g}, limit {limit:g})"


def _read(change: Comparison) -> float | None:
    """The p-value of the side that lost most; 1: no side lost more propositions than it won; None: nothing to ask."""
    sides = METRIC.judge(change)
    return min((1.0 if s.outcome == "yes" or s.p_value is None else s.p_value for s in sides), default=None)


SENSOR = Sensor(
    name="pluralism",
    judge=Threshold(limit=LIMIT, message=MESSAGE, floor=True, p_value=True),
    stops=True,
    read_topic=TopicReading(queries=METRIC.queries, measure=METRIC.measure, read=_read),
    needs_health=True,
    show=lambda p: f"pluralism p = {p:.2g}",
)
