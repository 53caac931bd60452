"""What the guard reads and judges, one file each, in the order in which it names what is wrong.

A new sensor is one file beside these, which ends in ``SENSOR = Sensor(…)``, and one line in ``SENSORS``.
No torch here.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from conviction.core.options import Option, settings_class
from conviction.errors import InputError
from conviction.training.sensors.sensor import (
    DriftMetrics,
    Samples,
    Sensor,
    StepReading,
    Threshold,
    TopicReading,
    Trace,
)

__all__ = [
    "SENSORS",
    "DriftMetrics",
    "Samples",
    "Sensor",
    "StepReading",
    "Threshold",
    "TopicReading",
    "Trace",
    "sensor_limits",
]

SENSORS: dict[str, Sensor] = {
    name: import_module(f"{__name__}.{name}").SENSOR
    for name in (
        "chosen_drop",
        "neutral_drop",
        "entropy_change",
        "top_mass_drop",
        "neutral_kl",
        "facts_drop",
        "own_words",
        "pluralism",
        "repetition_rise",
        "non_alphanumeric_rise",
        "empty",
        "subject",
        "wrong_answers",
        "repeated_sentences",
        "early_loss",
        "margin",
        "acceleration",
    )
}


def sensor_limits() -> Any:
    """Settings with the limits of all sensors. Raises InputError where two sensors have one of the same name."""
    limits: dict[str, Option] = {}
    for sensor in SENSORS.values():
        for option in sensor.options:
            if option.name in limits:
                raise InputError(
                    f"sensor '{sensor.name}': another sensor has a limit {option.name}", hint="give it another name"
                )
            limits[option.name] = option
    return settings_class("Limits", tuple(limits.values()))()
