"""Greedy samples turn into dots, dashes and other signs."""

from __future__ import annotations

from conviction.core.options import Option
from conviction.training.sensors.sensor import Sensor, Threshold

__all__ = ["SENSOR"]

MEANING = "rise of the share of visible characters that are no letters or digits"
LIMIT = Option(name="max_non_alphanumeric", default=0.25, meaning=MEANING, above=0, at_most=1)
JUDGE = Threshold(limit=LIMIT, message="samples turn into signs (+{value:.0%}, limit {limit:.0%})")
SENSOR = Sensor(
    name="non_alphanumeric_rise", judge=JUDGE, stops=True, read_samples=lambda s: s.rise("non_alphanumeric_share")
)
