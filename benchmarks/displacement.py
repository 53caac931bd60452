"""Does CHES tell which pairs make chosen answers sink? Where rule PD405 has its limit from.

TruthfulQA pairs in five equal groups by normalised CHES; a DPO run on each, the same steps; what
chosen answers of the run's own pairs gain or lose in log-probability. A gentle rate, and
one at which runs of this model come near collapse.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.machine import save
from benchmarks.questions import pairs
from conviction import Query, chat
from conviction.auditing.measuring import measure
from conviction.auditing.rows import rows_of_training_data
from conviction.core.context import RunContext
from conviction.data.training_data import PreferencePair, TrainingData
from conviction.interventions.dpo import Dpo
from conviction.models.hf import HFModel
from conviction.models.loading import load_model
from conviction.training.guard import Guard
from conviction.training.settings import Training

GROUPS, STEPS = 5, 16
RATES = (2e-4, 1e-3)


def means(model: Any, group: list[PreferencePair]) -> np.ndarray[Any, Any]:
    """[n, 2] nats per token of chosen and rejected."""
    scores = model.logprobs([Query(p.messages, (p.chosen, p.rejected)) for p in group])
    return np.array([[chosen.logp_mean, rejected.logp_mean] for chosen, rejected in scores])


def run(model: HFModel, group: list[PreferencePair], rate: float) -> dict[str, float]:
    training = Training(learning_rate=rate, epochs=40, max_steps=STEPS)
    guard = Guard(mode="off", sample_every=1000)
    trained = Dpo(training=training).apply(model, TrainingData("group", tuple(group)), ctx=RunContext(guard=guard))
    moved = means(trained.model, group) - means(model, group)
    return {
        "learning_rate": rate,
        "chosen_change": round(float(moved[:, 0].mean()), 4),
        "rejected_change": round(float(moved[:, 1].mean()), 4),
        "chosen_sank": round(float((moved[:, 0] < 0).mean()), 3),
    }


def main() -> None:
    model = load_model("smollm2-135m")
    name, found = pairs(400)
    training_data = TrainingData(
        name, tuple(PreferencePair(f"{i}", chat(q), a, b) for i, (q, a, b) in enumerate(found) if a != b)
    )
    measured, _ = measure(list(rows_of_training_data(training_data)), model)
    scores = []
    for row in measured:
        m = row.measured
        assert m is not None
        assert m.inner is not None
        assert m.square is not None
        ours, theirs = len(m.chosen.logprobs), len(m.rejected.logprobs)
        scores.append((m.inner / (ours * theirs)) / (m.square / ours**2) - 1)
    groups = []
    for part in np.array_split(np.argsort(scores), GROUPS):
        values = [scores[i] for i in part]
        runs = [run(model, [training_data.pairs[i] for i in part], rate) for rate in RATES]
        groups.append({"ches": [round(min(values), 4), round(max(values), 4)], "runs": runs})
        print(groups[-1], flush=True)
    save("displacement", {"data": name, "pairs": len(training_data.pairs), "steps": STEPS, "groups": groups})


if __name__ == "__main__":
    main()
