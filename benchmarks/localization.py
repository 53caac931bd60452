"""Causal tracing, knowledge neurons and truth directions on facts that the embedded model knows.

    python -m benchmarks.localization [STATEMENTS]

Statements are the first of ROME's known_1000 that the model completes as they end there, read from beside the checkout.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.machine import machine, save
from conviction.data.reading import read_training_data
from conviction.data.topic import load_topic
from conviction.localization.analysis import localize
from conviction.localization.heatmaps import draw_all
from conviction.models.loading import load_model

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "known_1000.json"


def main(count: int = 20) -> None:
    """Measure, print, save the averages and what was found; the single maps stay out of the repository."""
    facts = read_training_data(DATA).facts
    found = localize(load_model("smollm2-135m"), facts, source="known facts", topic=load_topic("obesity"), limit=count)
    draw_all(found.model_copy(update={"traces": ()}), Path(__file__).parent / "results" / "localization_maps")
    tokens = {t.fact: len(t.tokens) for t in found.traces}
    save(
        "localization",
        {
            "machine": machine(),
            "found": found.findings,
            "seconds": found.seconds,
            "seconds_a_statement": found.seconds["tracing"] / len(tokens),
            "tokens": sorted(tokens.values()),
            "left_out": len(found.left_out),
            "maps": [m.model_dump() for m in found.maps],
            "neurons": [n.model_dump() for n in found.neurons],
            "truth": None if found.truth is None else found.truth.model_dump(),
        },
    )
    print(json.dumps([*found.findings, found.seconds], indent=1))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
