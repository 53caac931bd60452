"""How many pairs carry a shift over to questions that were not trained on?

DPO on growing subsets of a kit's training propositions, the same number of
steps each; what moves is read on the trained pairs and on the kit's held-out
test items. Where rule PD501 has its numbers from.
"""

from __future__ import annotations

import dataclasses
import random
import statistics
from typing import Any

from benchmarks.machine import save
from conviction import Query, Topic, chat, load_topic
from conviction.core.context import RunContext
from conviction.data.training_data import PreferencePair, TrainingData
from conviction.interventions.dpo import Dpo
from conviction.models.hf import HFModel
from conviction.models.loading import load_model
from conviction.training.guard import Guard
from conviction.training.settings import Training

STEPS = 24
SIZES = (2, 4, 8, 16, 27)
SEEDS = (0, 1)


def gaps(model: Any, asked: list[tuple[str, str, str]]) -> list[float]:
    """Nats per token that the wanted answer leads by."""
    scores = model.logprobs([Query(chat(question), (wanted, other)) for question, wanted, other in asked])
    return [wanted.logp_mean - other.logp_mean for wanted, other in scores]


def held_out(topic: Topic) -> list[tuple[str, str, str]]:
    items = [i for i in topic.of_role("target", "paraphrase") if i.split == "test"]
    return [(i.question, i.answers[topic.target], i.answers[topic.other]) for i in items]


def subset(topic: Topic, training_data: TrainingData, size: int, seed: int) -> tuple[PreferencePair, ...]:
    names = {i.id: i.proposition for i in topic.items}
    propositions = sorted({names[p.id] for p in training_data.pairs})
    kept = set(random.Random(seed).sample(propositions, min(size, len(propositions))))
    return tuple(p for p in training_data.pairs if names[p.id] in kept)


def run(model: HFModel, topic: Topic, size: int, seed: int) -> dict[str, Any]:
    training_data = TrainingData.from_topic(topic)
    pairs = subset(topic, training_data, size, seed)
    training = Training(learning_rate=2e-4, epochs=40, max_steps=STEPS, seed=seed)
    guard = Guard(mode="off", sample_every=1000)
    trained = Dpo(training=training).apply(
        model, dataclasses.replace(training_data, pairs=pairs), ctx=RunContext(guard=guard)
    )
    asked = [(p.messages[-1].content, p.chosen, p.rejected) for p in pairs]
    moved = {}
    for name, questions in (("trained", asked), ("held_out", held_out(topic))):
        before, after = gaps(model, questions), gaps(trained.model, questions)
        moved[name] = {
            "before": statistics.mean(before),
            "after": statistics.mean(after),
            "flipped": sum(b < 0 < a for b, a in zip(before, after, strict=True)),
            "wrong_before": sum(b < 0 for b in before),
        }
    share = (moved["held_out"]["after"] - moved["held_out"]["before"]) / (
        moved["trained"]["after"] - moved["trained"]["before"]
    )
    return {
        "topic": topic.name,
        "propositions": size,
        "pairs": len(pairs),
        "seed": seed,
        **moved,
        "carried_over": share,
    }


def main() -> None:
    model = load_model("smollm2-135m")
    runs = []
    for name in ("obesity", "politeness"):
        for size in SIZES:
            for seed in SEEDS:
                runs.append(run(model, load_topic(name), size, seed))
                print(runs[-1], flush=True)
    save("few_pairs", {"steps": STEPS, "learning_rate": 2e-4, "beta": 0.1, "runs": runs})


if __name__ == "__main__":
    main()
