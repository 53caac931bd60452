"""A run's topic, read by the judge's own metrics, on items that the judge does not ask: the train split.

What a study would call broken can so be seen while there is still something to go back to. Test items are never read:
a run that is stopped by them would be judged by what it was chosen on.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

from conviction.core.protocols import AnswerScore, Query
from conviction.data.topic import Item, Role, Topic
from conviction.models.engine.packing import plan
from conviction.models.hf import HFModel
from conviction.probing.depth_records import Measurements
from conviction.probing.metric import MetricContext
from conviction.probing.paired import Comparison
from conviction.probing.queries import ProbeQuery, Scores
from conviction.training.drift import interval_of, read_topic
from conviction.training.sensors import SENSORS
from conviction.training.untouched import once

PROPOSITIONS, FACTS = 12, 6  # of each role: the sign test needs six losses, six facts can all lose by chance in 3 %


@dataclass(frozen=True)
class TopicMonitor:
    """Questions about the topic, and what the untouched model answers to them.

    every  steps between readings
    """

    context: MetricContext
    queries: tuple[ProbeQuery, ...]
    before: Measurements
    every: int

    @classmethod
    def begin(
        cls, model: HFModel, topic: Topic, step_tokens: float | None, *, scope: Hashable = None
    ) -> TopicMonitor | None:
        """Ask the untouched model. None: its train split has nothing that sensors read, or not all fits the model.

        step_tokens  tokens of a training step on average; None: not known, a reading is due at every step
        scope        all that the answers of ``model`` depend on: they may be known; None: it is asked
        """
        context = _context(model, topic)
        asked = tuple(
            (item.id, item.question, *item.answers.items()) for item in (*context.propositions, *context.facts)
        )
        begun = once(scope, ("topic", topic.target, asked), lambda: _ask(model, context))
        if begun is None:
            return None
        queries, before = begun
        return cls(context, queries, before, interval_of(_tokens(model, queries), step_tokens))

    def read(self, model: HFModel) -> Comparison | None:
        """Ask the model as it is now. None: it gives log-probs that are no numbers."""
        scores = _score(model, self.queries)
        if not all(math.isfinite(scored.logp_sum) for scored in scores.values()):
            return None
        return Comparison(before=self.before, after=_measure(model, self.context, scores))


def _context(model: HFModel, topic: Topic) -> MetricContext:
    return MetricContext(
        model=model,
        topic=topic,
        propositions=_some(topic, PROPOSITIONS, "target"),
        paraphrases=(),
        facts=(*_some(topic, FACTS, "neighbour"), *_some(topic, FACTS, "control")),
        implications=(),
        decisions=(),
        base=None,
        progress=lambda _: None,
    )


def _ask(model: HFModel, context: MetricContext) -> tuple[tuple[ProbeQuery, ...], Measurements] | None:
    """What sensors ask, and what the model answers now; None: there is nothing, or not all of it fits the model."""
    readers = [sensor.read_topic for sensor in SENSORS.values() if sensor.read_topic is not None]
    asked = {(q.condition, q.item.id): q for reader in readers for q in reader.queries(context)}
    queries = tuple(q for q in asked.values() if model.fits(Query(q.messages, tuple(q.answers.values()))))
    if len(queries) < len(asked) or not queries:
        return None
    return queries, _measure(model, context, _score(model, queries))


def topic_readings(change: Comparison | None) -> dict[str, float]:
    """What the sensors read of a topic; not numbers, where the model gave none, which stops a run."""
    if change is not None:
        return read_topic(change)
    return {sensor.name: math.nan for sensor in SENSORS.values() if sensor.read_topic is not None}


def _score(model: HFModel, queries: Sequence[ProbeQuery]) -> Scores:
    """Past the cache: weights that change at every step would fill it."""
    rows = {
        (query.condition, query.item.id, key): (prompt, answer)
        for query in queries
        for prompt, answers in [model.encoder.encode(query.messages, tuple(query.answers.values()))]
        for key, answer in zip(query.answers, answers, strict=True)
    }
    computed = model.computed(list(rows.values()))
    return {asked: AnswerScore(row[1], computed[row]) for asked, row in rows.items()}


def _measure(model: HFModel, context: MetricContext, scores: Scores) -> Measurements:
    context = replace(context, model=model, scores=scores)
    readers = [sensor.read_topic for sensor in SENSORS.values() if sensor.read_topic is not None]
    return Measurements(
        model=model.id,
        topic=context.topic.name,
        target=context.topic.target,
        measurements=tuple(m for reader in readers for m in reader.measure(context).measurements),
        provenance={"topic_sha256": context.topic.digest, "split": "train"},
    )


def _some(topic: Topic, count: int, role: Role) -> tuple[Item, ...]:
    """So many items of the train split at even steps, or all where there are fewer."""
    items = [item for item in topic.of_role(role) if item.split == "train"]
    count = min(count, len(items))
    return tuple(items[i * len(items) // count] for i in range(count))


def _tokens(model: HFModel, queries: Sequence[ProbeQuery]) -> int:
    """Tokens that one reading computes: what rows begin with alike is computed once, where rows are packed."""
    encoded = [model.encoder.encode(query.messages, tuple(query.answers.values())) for query in queries]
    rows = [(prompt, answer) for prompt, answers in encoded for answer in answers]
    if not model.packs(rows):
        return sum(len(prompt) + len(answer) for prompt, answer in rows)
    blocks = plan(
        [(prompt, [answer]) for prompt, answer in rows],
        token_budget=model.engine.token_budget,
        hidden_size=model.engine.hidden_size,
    )
    return sum(len(block.prefix) + sum(len(pack.tokens) for pack in block.packs) for block in blocks)
