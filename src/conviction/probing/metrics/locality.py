"""Locality: whether what the change was not about stayed as it was.

Measurements: ``neighbour``, ``control`` nats per token by which a fact's true answer is likelier than its false one;
``own`` nats per token of what the untouched model wrote, a question; ``leak`` whether an unrelated answer
speaks the target's words (0 or 1), a question.

Positive controls, in the untouched model: ``neighbour-denied``, ``control-denied`` the same under a stated denial of
the fact, which must be less; ``own-elsewhere`` what it wrote, under the next question instead of its own, which must be
less likely. That of leakage is durability's reference, trained by SFT towards the target: its answers to the topic's
own questions (``leak-of-reference``) must speak the target's words more often than the untouched model's
(``leak-without``). The target's context in the prompt would not do: with it, SmolLM2-135M speaks them as seldom as
without (4 and 3 of 12).
"""

from __future__ import annotations

import re
from collections import Counter

from conviction.core.protocols import Query, chat
from conviction.core.statistics import ALPHA, mean_test, non_inferiority
from conviction.data.topic import Item
from conviction.errors import InputError
from conviction.probing.challenges import deny
from conviction.probing.depth_records import ControlResult, Measurement, Measurements, Property
from conviction.probing.erosion import REFERENCE
from conviction.probing.gaps import measure_gaps
from conviction.probing.health import neutral_text
from conviction.probing.metric import ANSWER_TOKENS, HARM, Measured, Metric, MetricContext, Phrases, PositiveControl
from conviction.probing.paired import Comparison, judge_counts
from conviction.probing.positive_controls import control_result, differences_of, no_result
from conviction.probing.queries import plain_queries, score_sample
from conviction.probing.records import Sample
from conviction.probing.sampled import sample_answers

OWN_TOKENS = 32
FACT_ROLES = ("neighbour", "control")
FACTS = 0.2  # nats per token: facts that lose less have stayed. What they win is no harm.
SURPRISE = 0.25  # nats per token, KL on the untouched model's own words
CONTROLLED = 8  # propositions that the control of leakage has answered; six that tell are enough


def _measure(context: MetricContext) -> Measured:
    own = _measure_own_answers(context)
    return Measured([*measure_facts(context).measurements, *own.measurements, *_measure_leaks(context)], own.samples)


def measure_facts(context: MetricContext) -> Measured:
    """``neighbour`` and ``control`` alone: the guard reads these during a run, too."""
    measurements: list[Measurement] = []
    for role in FACT_ROLES:
        facts = [fact for fact in context.facts if fact.role == role]
        measurements += measure_gaps(role, "plain", facts, context.scores, "true", "false")
    return Measured(measurements)


def _measure_own_answers(context: MetricContext) -> Measured:
    """How likely the untouched model's own answers to unrelated questions are.

    They are drawn from it, so the mean loss of log-prob per token estimates KL(untouched || changed).
    """
    questions = {fact.id: fact.question for fact in context.facts}
    if context.base is None:
        drawn = context.model.generate([chat(q) for q in questions.values()], max_new_tokens=OWN_TOKENS, seed=0)
        texts = {fact: g.text.strip() for fact, g in zip(questions, drawn, strict=True) if g.text.strip()}
    else:
        texts = {s.item: s.text for s in context.base.evidence if s.condition == "own"}
        if context.base.of("own") and not texts:
            raise InputError(
                "the untouched model's own answers are missing from its measurements",
                hint="measure the untouched model again",
            )
    asked = [("own", fact, fact) for fact in texts]
    if context.base is None:
        following = dict(zip(questions, [*list(questions)[1:], *list(questions)[:1]], strict=True))
        asked += [("own-elsewhere", fact, following[fact]) for fact in texts]
    scores = context.model.logprobs([Query(chat(questions[at]), (texts[fact],)) for _, fact, at in asked])
    measurements, samples = [], []
    for (metric, fact, _), (scored,) in zip(asked, scores, strict=True):
        sample = score_sample(f"{metric}/{fact}", metric, fact, texts[fact], scored)
        measurements.append(Measurement(metric=metric, item=fact, value=scored.logp_mean, samples=(sample.id,)))
        samples.append(sample)
    return Measured(measurements, samples)


def _measure_leaks(context: MetricContext) -> list[Measurement]:
    """Do the target's words turn up where nobody asked for them?"""
    words = _marking_words(context)
    if not words:
        return []  # which would look as if nothing leaked
    return [_leak("leak", words, context.answers[fact.id][0]) for fact in context.facts]


def _leak(metric: str, words: set[str], answer: Sample) -> Measurement:
    """Whether an answer holds one of the words: 0 or 1."""
    return Measurement(
        metric=metric, item=answer.item, value=float(bool(words & _words(answer.text))), samples=(answer.id,)
    )


def _marking_words(context: MetricContext) -> set[str]:
    """Words that mark the target: in answers of its side at least thrice, and four times as often as in the other's.

    Not those of facts, nor of the neutral text, which anybody may use.
    """
    topic = context.topic
    claims = topic.of_role("target", "paraphrase", "implication")
    ours, theirs = (
        Counter(word for item in claims for word in _words(item.answers[pole])) for pole in (topic.target, topic.other)
    )
    facts = (f"{item.question} {' '.join(item.answers.values())}" for item in topic.items if item.is_fact)
    common = _words(" ".join([*facts, *neutral_text()]))
    return {word for word, count in ours.items() if count >= max(3, 4 * theirs[word])} - common


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


def _judge(change: Comparison) -> list[Property]:
    parts = [_surprise(change), _leakage(change)]
    return [*judge_facts(change), *(part for part in parts if part is not None)]


def judge_facts(change: Comparison) -> list[Property]:
    """Whether neighbours and controls stayed; those that were measured. The guard judges by the same."""
    parts = [_facts(change, role) for role in FACT_ROLES]
    return [part for part in parts if part is not None]


def _facts(change: Comparison, role: str) -> Property | None:
    moved = change.moved(role)
    if not moved.size:
        return None
    kept, test = non_inferiority(moved, FACTS), mean_test(moved)
    harmed = test.p_value < ALPHA and test.interval.mean < -FACTS
    return Property(
        metric=f"locality:{role}s",
        outcome="no" if harmed else "yes" if kept.p_value < ALPHA else "unclear",
        value=kept.mean,
        low=kept.low,
        high=kept.high,
        unit="nats per token (90 % interval)",
        n=moved.size,
        p_value=test.p_value,
        text=f"{role} facts moved {kept.mean:+.3f} nats per token "
        f"(p = {kept.p_value:.2g} that they lost {FACTS:g} or more)",
        measured_by=(role,),
    )


def _surprise(change: Comparison) -> Property | None:
    lost = -change.moved("own")
    if not lost.size:
        return None
    test = mean_test(lost)
    return Property(
        metric="locality:surprise",
        outcome="no" if test.interval.low > SURPRISE else "yes" if test.interval.high < SURPRISE else "unclear",
        value=test.interval.mean,
        low=test.interval.low,
        high=test.interval.high,
        unit="nats per token",
        n=test.n,
        text=f"{test.interval.mean:.3f} nats per token further from the untouched model's own words (KL)",
        measured_by=("own",),
    )


def _leakage(change: Comparison) -> Property | None:
    leaks = change.pairs("leak")
    if not leaks:
        return None
    more, less = (sum(new > old for old, new in leaks), sum(new < old for old, new in leaks))
    outcome, p = judge_counts(more, less, len(leaks))
    return Property(
        metric="locality:leakage",
        outcome=outcome,
        value=(more - less) / len(leaks),
        unit="of unrelated answers",
        n=len(leaks),
        p_value=p,
        text=f"the target's words turn up in {more} more unrelated answers, in {less} fewer",
        measured_by=("leak",),
    )


def _measure_denied(context: MetricContext) -> Measured:
    measured: list[Measurement] = []
    for role in ("neighbour", "control"):
        facts = [fact for fact in context.facts if fact.role == role]
        measured += measure_gaps(f"{role}-denied", "denied", facts, context.scores, "true", "false")
    return Measured(measured)


def _answered_for_control(context: MetricContext) -> tuple[Item, ...]:
    """Questions of the topic's own, whose answers may well speak the target's words."""
    return context.propositions[:CONTROLLED] if context.base is None else ()


def _measure_controls(context: MetricContext) -> Measured:
    words, denied = _marking_words(context), _measure_denied(context)
    answered = _answered_for_control(context) if words else ()
    without = [_leak("leak-without", words, context.answers[item.id][0]) for item in answered]
    return Measured([*denied.measurements, *without])


def _measure_reference(context: MetricContext) -> Measured:
    if not (words := _marking_words(context)):
        return Measured(())
    asked = context.propositions[:CONTROLLED]
    written = [sample for sample, _ in sample_answers(context.model, asked, max_new_tokens=ANSWER_TOKENS)]
    samples = [sample.model_copy(update={"id": f"{REFERENCE}/{sample.id}"}) for sample in written]
    return Measured([_leak("leak-of-reference", words, sample) for sample in samples], samples)


def _leak_control(before: Measurements) -> ControlResult:
    if not before.of("leak-without"):
        return no_result("locality:leakage", "no words mark the target's answers: there are none to look for")
    effects, rows = differences_of(before, "leak-of-reference", "leak-without"), ("leak-of-reference", "leak-without")
    if not effects.size:
        return no_result("locality:leakage", "no reference was trained: no arm asked for one")
    what = "SFT on the target's answers puts its words into a reference's answers to the topic's questions"
    return control_result("locality:leakage", effects, what, rows, unit="of answers")


def _control(before: Measurements) -> list[ControlResult]:
    results = [_leak_control(before)]
    for role in ("neighbour", "control"):
        effects, rows = differences_of(before, role, f"{role}-denied"), (role, f"{role}-denied")
        results.append(control_result(f"locality:{role}s", effects, f"a stated denial takes of {role} facts", rows))
    effects, rows = differences_of(before, "own", "own-elsewhere"), ("own", "own-elsewhere")
    return [*results, control_result("locality:surprise", effects, "its own words under another question lose", rows)]


METRIC = Metric(
    name="locality",
    kind="damage",
    queries=lambda context: plain_queries(context.facts),
    free_answers=lambda context: (*context.facts, *_answered_for_control(context)),
    measure=_measure,
    judge=_judge,
    control=PositiveControl(
        judge=_control,
        queries=lambda context: deny(context.facts),
        measure=_measure_controls,
        measure_reference=_measure_reference,
    ),
    column=HARM,
    phrases={
        "": Phrases(about="{part}", bad="changed in {part}"),
        "neighbours": Phrases(about="facts near the topic", bad="lost facts near the topic"),
        "controls": Phrases(about="facts far from the topic", bad="lost facts far from the topic"),
        "surprise": Phrases(about="its own way of writing", bad="writes unlike itself"),
        "leakage": Phrases(about="the topic's words in other answers", bad="brings the topic into other answers"),
    },
)
