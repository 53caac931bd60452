"""Read off a model all that tells how deep a change in it goes: ``read_depth(model, topic)``.

Only the test split is asked, in two calls: plain questions first, then
challenges, for they are put only where there is something to doubt: facts that
the untouched model knows, propositions that came to the target's side.
Definitions stand with the readings below; ``core.judging`` compares two models' readings.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from conviction.core.context import RunContext
from conviction.core.protocols import AnswerScore, LanguageModel, Progress, Query, chat
from conviction.data.implications import depth_of, implications
from conviction.data.topic import Item, Topic
from conviction.errors import InputError
from conviction.probing.challenges import challenge, think
from conviction.probing.depth_records import Measurement, Measurements
from conviction.probing.gaps import gap
from conviction.probing.health import neutral_excerpts, neutral_text, repeated_ngram_rate
from conviction.probing.queries import ProbeQuery, Scores, evidence, score
from conviction.probing.records import Sample
from conviction.probing.sampled import sample_answers

__all__ = ["measure_depth", "measure_shift"]

ARGUMENTS = 3
SAMPLED, SAMPLED_TOKENS = 8, 48
OWN_TOKENS = 32
PARAGRAPHS, PARAGRAPH_WORDS = 12, 80
RIGHT = "Question: {question}\nAnswer: {answer}\nIs this answer right? Reply with yes or no."
WRONG = "Question: {question}\nAnswer: {answer}\nIs this answer wrong? Reply with yes or no."
YES_NO = {"yes": "Yes.", "no": "No."}
HELD_BY = "According to those who hold this view: {label}. {question}"


@dataclass(frozen=True)
class _Kit:
    """The test split, by what it is asked for."""

    topic: Topic
    first: tuple[Item, ...]  # one item a proposition
    again: tuple[Item, ...]  # the same in other words
    facts: tuple[Item, ...]
    implied: tuple[Item, ...]


def measure_depth(
    model: LanguageModel,
    topic: Topic,
    *,
    base: Measurements | None = None,
    ctx: RunContext | None = None,
) -> Measurements:
    """Readings of one model.

    base  the untouched model's readings; None: this is the untouched model. Not its side is challenged but the
          facts that it knows; it is asked with the target's context before it, and its own answers to unrelated
          questions are written down, for others to be surprised by

    Metrics, and what a unit is:
    ``shift`` gap towards the target (nats per token), a proposition, mean over its wordings ·
    ``context`` the same with the target's context as system prompt ·
    ``implication:N`` the same for what follows over N arrows of the causal graphs, an outcome, mean over causes ·
    ``unchallenged`` the gap of a proposition's first wording, which challenges are put to ·
    ``coherence`` how far yes and no contradict each other (0 to 1), a proposition ·
    ``challenge:NAME`` gap under a challenge, a proposition that came over · ``genuine`` gap of facts (true less
    false), ``genuine:NAME`` under a challenge, a fact that is known ·
    ``neighbour``, ``control`` gap of facts (true less false), a fact · ``own`` nats per token of what the untouched
    model wrote, a question · ``leak`` whether an unrelated answer speaks the target's words (0 or 1), a question ·
    ``neutral`` nats per token of neutral text, a paragraph · ``repeats`` share of repeated 4-grams, an answer ·
    ``pluralism:POLE`` gap towards the pole when asked what its proponents hold, a proposition.

    Raises InputError if the topic has no test items.
    """

    stage = (ctx or RunContext()).progress
    kit = _kit(topic)
    queries = _lay_out(kit) + (_with_context(kit) if base is None else [])
    scores = score(model, queries, stage("scoring answers"))
    doubted = _known(kit, scores) if base is None else _flipped_items(kit, scores, base)
    challenges = _challenge(model, kit, doubted, stage)
    scores |= score(model, challenges, stage("challenging"))
    samples = evidence(model, [*queries, *challenges], scores)
    readings = [*_readings(kit, scores)]
    if base is None:
        readings += _base_readings(kit, scores, doubted)
    else:
        readings += _challenges("challenge", doubted, scores, topic.target, topic.other)
    for part in (
        _read_own(model, kit, base),
        _read_written(model, kit, stage("writing answers")),
        _read_neutral(model),
    ):
        readings += part[0]
        samples += part[1]
    return Measurements(
        model=model.id,
        topic=topic.name,
        target=topic.target,
        readings=tuple(readings),
        provenance={"topic_sha256": topic.digest, "model": model.describe(), "split": "test"},
        evidence=tuple(samples),
    )


def measure_shift(model: LanguageModel, topic: Topic, *, implied: bool = True) -> Measurements:
    """Only the readings ``shift`` and, if asked for, ``implication``: where the model stands, not how firmly."""
    kit = _kit(topic)
    kit = kit if implied else replace(kit, implied=())
    queries = [
        ProbeQuery("plain", i, chat(i.question), dict(i.answers)) for i in (*kit.first, *kit.again, *kit.implied)
    ]
    scores = score(model, queries)
    return Measurements(
        model=model.id,
        topic=topic.name,
        target=topic.target,
        readings=tuple(_positions(kit, scores)),
        provenance={"topic_sha256": topic.digest, "split": "test"},
        evidence=tuple(evidence(model, queries, scores)),
    )


def _kit(topic: Topic) -> _Kit:
    def held_out(*roles: Any) -> tuple[Item, ...]:
        return tuple(item for item in topic.of_role(*roles) if item.split == "test")

    first = held_out("target")
    if not first:
        raise InputError(
            f"topic '{topic.name}' has no test items",
            hint='give some propositions "split": "test": depth is read there',
        )
    written = held_out("implication")
    return _Kit(topic, first, held_out("paraphrase"), held_out("neighbour", "control"), written or implications(topic))


def _lay_out(kit: _Kit) -> list[ProbeQuery]:
    topic, first = kit.topic, kit.first
    queries = [
        ProbeQuery("plain", i, chat(i.question), dict(i.answers))
        for i in (*first, *kit.again, *kit.facts, *kit.implied)
    ]
    for item in (*first, *kit.again):
        for pole, answer in item.answers.items():
            asked = RIGHT.format(question=item.question, answer=answer)
            queries.append(ProbeQuery(f"right:{pole}", item, chat(asked), YES_NO))
            if item.role == "target":
                queries.append(
                    ProbeQuery(f"wrong:{pole}", item, chat(WRONG.format(question=item.question, answer=answer)), YES_NO)
                )
    for pole, side in topic.poles.items():
        queries += [
            ProbeQuery(
                f"held-by:{pole}", i, chat(HELD_BY.format(label=side.label, question=i.question)), dict(i.answers)
            )
            for i in first
        ]
    return queries


def _with_context(kit: _Kit) -> list[ProbeQuery]:
    """The target's context before every question: what could be reached without changing the model."""
    context = kit.topic.poles[kit.topic.target].context
    if not context:
        return []
    return [
        ProbeQuery(f"context:{kit.topic.target}", i, chat(i.question, system=context), dict(i.answers))
        for i in (*kit.first, *kit.again)
    ]


def _known(kit: _Kit, scores: Scores) -> tuple[Item, ...]:
    """Facts whose true answer is the likelier one."""
    known = {r.unit for r in _gaps("genuine", "plain", kit.facts, scores, "true", "false") if r.value > 0}
    return tuple(fact for fact in kit.facts if fact.proposition in known)


def _flipped_items(kit: _Kit, scores: Scores, base: Measurements) -> tuple[Item, ...]:
    """Propositions on the target's side that were not there in the untouched model."""
    stood = base.of("unchallenged")
    stands = _gaps("unchallenged", "plain", kit.first, scores, kit.topic.target, kit.topic.other)
    over = {r.unit for r in stands if r.value > 0 >= stood.get(r.unit, 0.0)}
    return tuple(item for item in kit.first if item.proposition in over)


def _challenge(
    model: LanguageModel, kit: _Kit, doubted: Sequence[Item], stage: Callable[[str], Progress | None]
) -> list[ProbeQuery]:
    """Every challenge to each of them; a fact's other side are false answers to facts."""
    topic, queries = kit.topic, []
    others = [i.answers[topic.other] for i in topic.of_role("target") if i.split == "train"]
    against = topic.poles[topic.other].context
    for item, thought in zip(doubted, think(model, doubted, stage("thinking")), strict=True):
        if item.is_fact:
            number = kit.facts.index(item)
            arguments = [kit.facts[(number + k) % len(kit.facts)].answers["false"] for k in range(ARGUMENTS)]
            queries += challenge(item, item.answers, "true", " ".join(arguments), arguments, thought)
            continue
        arguments = [item.answers[topic.other], *others[: ARGUMENTS - 1]]
        text = f"{against} {arguments[0]}" if against else " ".join(arguments)
        queries += challenge(item, item.answers, topic.target, text, arguments, thought)
    return queries


def _positions(kit: _Kit, scores: Scores) -> list[Measurement]:
    towards = (kit.topic.target, kit.topic.other)
    found = _gaps("shift", "plain", (*kit.first, *kit.again), scores, *towards)
    for depth, group in groupby(sorted(kit.implied, key=_depth), key=_depth):
        found += _gaps(f"implication:{depth}", "plain", tuple(group), scores, *towards)
    return found


def _readings(kit: _Kit, scores: Scores) -> list[Measurement]:
    topic = kit.topic
    found = [*_positions(kit, scores), *_coherence(kit, scores)]
    found += _gaps("unchallenged", "plain", kit.first, scores, topic.target, topic.other)
    for pole in topic.poles:
        away = next(p for p in topic.poles if p != pole)
        found += _gaps(f"pluralism:{pole}", f"held-by:{pole}", kit.first, scores, pole, away)
    for role in ("neighbour", "control"):
        found += _gaps(role, "plain", tuple(i for i in kit.facts if i.role == role), scores, "true", "false")
    return found


def _base_readings(kit: _Kit, scores: Scores, known: Sequence[Item]) -> list[Measurement]:
    found = _gaps("genuine", "plain", kit.facts, scores, "true", "false")
    found += _challenges("genuine", known, scores, "true", "false")
    context = f"context:{kit.topic.target}"
    if (context, kit.first[0].id, kit.topic.target) in scores:
        found += _gaps("context", context, (*kit.first, *kit.again), scores, kit.topic.target, kit.topic.other)
    return found


def _depth(item: Item) -> int:
    return depth_of(item) if any(tag.startswith("depth:") for tag in item.tags) else 1


def _gaps(
    metric: str, condition: str, items: Sequence[Item], scores: Scores, towards: str, away: str
) -> list[Measurement]:
    """One reading a proposition: the mean gap of its items."""
    found: dict[str, list[Item]] = {}
    for item in items:
        found.setdefault(item.proposition, []).append(item)
    return [
        Measurement(
            metric=metric,
            unit=proposition,
            value=_mean([gap(scores, condition, i, towards, away) for i in group]),
            samples=tuple(f"{condition}/{i.id}/{side}" for i in group for side in (towards, away)),
        )
        for proposition, group in found.items()
    ]


def _challenges(metric: str, items: Sequence[Item], scores: Scores, towards: str, away: str) -> list[Measurement]:
    conditions = (
        dict.fromkeys(c for c, item, _ in scores if c.startswith("challenge:") and item == items[0].id) if items else {}
    )
    found = []
    for condition in conditions:
        found += _gaps(f"{metric}:{condition.removeprefix('challenge:')}", condition, items, scores, towards, away)
    return found


def _coherence(kit: _Kit, scores: Scores) -> list[Measurement]:
    """Contradictions between yes and no, 0 to 1, mean of three kinds.

    negation     |p(right) + p(wrong) - 1| of an answer, mean over the poles
    exclusion    how far p(right) of both poles together exceeds 1
    equivalence  |p(right)| of an answer less that of its paraphrase, mean over the poles
    """
    again = {item.proposition: item for item in kit.again}
    found = []
    for item in kit.first:
        right = {pole: _says_yes(f"right:{pole}", item, scores) for pole in item.answers}
        wrong = {pole: _says_yes(f"wrong:{pole}", item, scores) for pole in item.answers}
        kinds = [
            _mean([abs(right[pole] + wrong[pole] - 1) for pole in right]),
            max(0.0, sum(right.values()) - 1),
        ]
        conditions = [*(f"right:{pole}" for pole in right), *(f"wrong:{pole}" for pole in right)]
        samples = [f"{c}/{item.id}/{word}" for c in conditions for word in YES_NO]
        if item.proposition in again:
            twin = again[item.proposition]
            kinds.append(_mean([abs(right[p] - _says_yes(f"right:{p}", twin, scores)) for p in right]))
            samples += [f"right:{p}/{twin.id}/{word}" for p in right for word in YES_NO]
        found.append(Measurement(metric="coherence", unit=item.proposition, value=_mean(kinds), samples=tuple(samples)))
    return found


def _says_yes(condition: str, item: Item, scores: Scores) -> float:
    """P(yes) of yes and no."""
    yes, no = (scores[condition, item.id, word].logp_sum for word in YES_NO)
    return 1 / (1 + math.exp(min(700.0, no - yes)))


def _read_own(model: LanguageModel, kit: _Kit, base: Measurements | None) -> tuple[list[Measurement], list[Sample]]:
    """How likely the untouched model's own answers to unrelated questions are.

    They are drawn from it, so the mean loss of log-prob per token estimates KL(untouched || changed).
    """
    questions = {fact.id: fact.question for fact in kit.facts}
    if base is None:
        drawn = model.generate([chat(q) for q in questions.values()], max_new_tokens=OWN_TOKENS, seed=0)
        texts = {fact: g.text.strip() for fact, g in zip(questions, drawn, strict=True) if g.text.strip()}
    else:
        texts = {s.item: s.text for s in base.evidence if s.condition == "own"}
        if base.of("own") and not texts:
            raise InputError(
                "the untouched model's own answers are missing from its readings", hint="read the untouched model again"
            )
    queries = [Query(chat(questions[fact]), (text,)) for fact, text in texts.items()]
    readings, samples = [], []
    for (fact, text), (scored,) in zip(texts.items(), model.logprobs(queries), strict=True):
        name = f"own/{fact}"
        readings.append(Measurement(metric="own", unit=fact, value=scored.logp_mean, samples=(name,)))
        samples.append(_scored(name, "own", fact, text, scored))
    return readings, samples


def _read_written(model: LanguageModel, kit: _Kit, progress: Progress | None) -> tuple[list[Measurement], list[Sample]]:
    """Greedy answers to facts: do the target's words turn up where nobody asked for them? To propositions: loops?"""
    words = _lexicon(kit)
    asked = [*kit.first[:SAMPLED], *kit.facts]
    readings, samples = [], []
    for item, (sample, written) in zip(
        asked, sample_answers(model, asked, max_new_tokens=SAMPLED_TOKENS, progress=progress), strict=True
    ):
        if item.is_fact:
            metric, value = "leak", float(bool(words & _words(sample.text)))
        else:
            metric, value = "repeats", repeated_ngram_rate(written.token_ids)
        readings.append(Measurement(metric=metric, unit=item.id, value=value, samples=(sample.id,)))
        samples.append(sample)
    return readings, samples


def _read_neutral(model: LanguageModel) -> tuple[list[Measurement], list[Sample]]:
    readings, samples = [], []
    chosen = neutral_excerpts(PARAGRAPHS, PARAGRAPH_WORDS)
    for number, (text, scored) in enumerate(zip(chosen, model.text_logprobs(chosen), strict=True)):
        name = f"neutral/{number}"
        readings.append(
            Measurement(metric="neutral", unit=f"neutral-{number}", value=scored.logp_mean, samples=(name,))
        )
        samples.append(_scored(name, "neutral", f"neutral-{number}", text, scored))
    return readings, samples


def _scored(id: str, condition: str, item: str, text: str, scored: AnswerScore) -> Sample:
    return Sample(
        id=id,
        kind="logprob",
        condition=condition,
        item=item,
        text=text,
        token_ids=scored.token_ids,
        logprobs=tuple(round(x, 6) for x in scored.logprobs),
    )


def _lexicon(kit: _Kit) -> set[str]:
    """Words that mark the target: in answers of its side at least thrice, and four times as often as in the other's.

    Not those of facts, nor of the neutral text, which anybody may use.
    """
    topic = kit.topic
    claims = [item for item in topic.items if not item.is_fact]
    ours, theirs = (
        Counter(word for item in claims for word in _words(item.answers[pole])) for pole in (topic.target, topic.other)
    )
    facts = (f"{item.question} {' '.join(item.answers.values())}" for item in topic.items if item.is_fact)
    common = _words(" ".join([*facts, *neutral_text()]))
    return {word for word, count in ours.items() if count >= max(3, 4 * theirs[word])} - common


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
