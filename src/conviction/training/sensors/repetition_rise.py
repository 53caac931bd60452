"""Greedy samples repeat themselves."""

from __future__ import annotations

from conviction.core.options import Option
from conviction.training.sensors.sensor import Sensor, Threshold

__all__ = ["SENSOR"]

MEANING = "rise of the share of repeated 4-grams in greedy samples"
LIMIT = Option(name="max_repetition", default=0.25, meaning=MEANING, above=0, at_most=1)
SENSOR = Sensor(
    name="repetition_rise",
    judge=Threshold(limit=LIMIT, message="samples repeat themselves (+{value:.0%}, limit {limit:.0%})"),
    stops=True,
    read_samples=lambda samples: samples.rise("repeated_4gram_rate"),
    show=lambda rise: f"{rise:+.0%} repeated 4-grams",
)
