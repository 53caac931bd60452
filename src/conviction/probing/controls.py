"""What separates a real preference from an artefact. Pure functions over scored answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from conviction.core.statistics import ALPHA, mean_interval, smallest_p
from conviction.data.topic import Item, Topic
from conviction.probing.gaps import by_proposition, estimate, gap
from conviction.probing.matching import check_matching
from conviction.probing.queries import OTHER_WORDING, TEMPLATES, Scores, other_wording
from conviction.probing.records import (
    Controls,
    FactControl,
    ForwardAgreement,
    PositiveControl,
    Rescoring,
    Summary,
    TemplateSpread,
    WordingNull,
)
from conviction.probing.verdict import failed_controls

NULL_DRAWS = 9999
# What an answer's mean may differ by when it is asked again in other company, nats per token; in half precision at
# least: it rounds otherwise with every shape of a batch, and gaps below what was seen are ties.
EXACT, HALF_PRECISION = 1e-4, 0.02
HALF = {"bfloat16", "float16"}


def measure_controls(
    topic: Topic,
    items: Sequence[Item],
    facts: Sequence[Item],
    scores: Scores,
    summary: Summary,
    rescored: Rescoring,
) -> Controls:
    """All controls for which scores are there."""
    return Controls(
        rescored=rescored,
        wording_null=_wording_null(topic, items, scores, summary),
        pmi_sign_change=summary.pmi_gap_nats * summary.gap_nats.mean < 0,
        positive={pole: _positive(topic, items, scores, pole) for pole, side in topic.poles.items() if side.context},
        templates=_templates(topic, items, scores),
        facts={
            role: _facts(group, scores)
            for role in ("neighbour", "control")
            if (group := [f for f in facts if f.role == role])
        },
        matching=check_matching([*items, *facts], scores, lengths=topic.length_matched),
    )


def measure_rescoring(scores: Scores, again: Scores, described: Mapping[str, Any]) -> Rescoring:
    """How scores compare with those of the same rows asked again, and with the model's own ``forward``.

    described  what the model says of itself after scoring: its noise, and what it scored again by itself
    """
    differences = [np.abs(np.subtract(scores[key].logprobs, again[key].logprobs)).max() for key in again]
    means = [abs(scores[key].logp_mean - again[key].logp_mean) for key in again]
    own = described.get("rescored")
    forward = None if own is None else ForwardAgreement(**own)
    return Rescoring(
        asked_again=len(again),
        max_difference_nats=float(max(differences)),
        mean_difference_nats=float(max(means)),
        forward=forward,
        passed=bool(max(means) <= _tolerance(forward, half=described.get("dtype") in HALF)),
    )


def _tolerance(forward: ForwardAgreement | None, *, half: bool) -> float:
    """What an answer's mean may differ by when it is asked again, nats per token.

    Two packed scores are each as far from the model's own ``forward`` as was accepted for rounding, so that they
    may be twice as far from each other.
    """
    if not half:
        return EXACT
    rounding = forward.mean_difference_nats if forward is not None and forward.accepted else 0.0
    return max(HALF_PRECISION, 2 * rounding)


def _wording_null(topic: Topic, items: Sequence[Item], scores: Scores, summary: Summary) -> WordingNull | None:
    """How far two wordings of one claim lie apart under the same question."""
    twins = other_wording(items)
    differences = np.array(
        [
            gap(scores, "plain", item, pole, pole + OTHER_WORDING)
            for item in items
            if item.id in twins
            for pole in topic.poles
        ]
    )
    if differences.size == 0:
        return None
    # What such differences would do to a mean of n gaps, if which wording stood where were a coin toss.
    rng = np.random.default_rng(0)
    shape = (NULL_DRAWS, summary.n)
    means = (rng.choice((-1.0, 1.0), size=shape) * rng.choice(differences, size=shape)).mean(axis=1)
    mean_q95 = float(np.quantile(np.abs(means), 0.95))
    return WordingNull(
        n=summary.n,
        item_q95_nats=float(np.quantile(np.abs(differences), 0.95)),
        mean_q95_nats=mean_q95,
        exceeded=abs(summary.gap_nats.mean) > mean_q95,
    )


def _positive(topic: Topic, items: Sequence[Item], scores: Scores, pole: str) -> PositiveControl:
    """Movement of the gap towards ``pole`` when its context is the system prompt."""
    away = next(p for p in topic.poles if p != pole)
    asked = [i for i in items if (f"context:{pole}", i.id, pole) in scores]
    shifts = by_proposition(
        asked, lambda i: gap(scores, f"context:{pole}", i, pole, away) - gap(scores, "plain", i, pole, away)
    )
    interval = mean_interval(shifts)
    # With too few propositions for a test, all of them have to move.
    passed = interval.low > 0 if smallest_p(len(shifts)) < ALPHA else bool((shifts > 0).all())
    return PositiveControl(n=len(shifts), shift_nats=estimate(interval), moved=int((shifts > 0).sum()), passed=passed)


def _templates(topic: Topic, items: Sequence[Item], scores: Scores) -> TemplateSpread | None:
    first = [i for i in items if i.role == "target"]
    names = ["plain", *(f"template:{name}" for name, _, _ in TEMPLATES)]
    if (names[1], first[0].id, topic.target) not in scores:
        return None
    gaps = {
        name.removeprefix("template:"): float(
            by_proposition(first, lambda i, at=name: gap(scores, at, i, topic.target, topic.other)).mean()  # type: ignore[misc]
        )
        for name in names
    }
    values = np.array(list(gaps.values()))
    return TemplateSpread(
        gap_nats=gaps,
        mean=float(values.mean()),
        sd=float(values.std(ddof=1)),
        low=float(values.min()),
        high=float(values.max()),
        sign_agreement=float((np.sign(values) == np.sign(values.mean())).mean()),
    )


def _facts(facts: Sequence[Item], scores: Scores) -> FactControl:
    gaps = by_proposition(facts, lambda i: gap(scores, "plain", i, "true", "false"))
    return FactControl(n=len(gaps), prefers_true=int((gaps > 0).sum()), gap_nats=estimate(mean_interval(gaps)))


def warnings(summary: Summary, controls: Controls, described: Mapping[str, Any]) -> tuple[str, ...]:
    """What a reader must know before believing the verdict; ``described``: what the model says of itself."""
    system_turn = described.get("system_turn")
    notes = [str(system_turn)] if system_turn and (controls.positive or controls.templates) else []
    if controls.pmi_sign_change:
        notes.append(
            f"the sign changes once the unconditional log-probs are taken off (raw {summary.gap_nats.mean:+.2f}, "
            f"PMI {summary.pmi_gap_nats:+.2f} nats): the texts themselves differ in likelihood, whatever is asked"
        )
    halved = abs(summary.pmi_gap_nats) < abs(summary.gap_nats.mean) / 2
    if halved and not controls.pmi_sign_change:
        notes.append(
            f"less than half of the gap is due to the question: {summary.pmi_gap_nats:+.2f} of "
            f"{summary.gap_nats.mean:+.2f} nats are left with the unconditional log-probs taken off"
        )
    own = summary.conditional
    if own is not None and abs(own.gap_nats.mean) < abs(summary.gap_nats.mean) / 2:
        notes.append(
            f"most of the gap does not depend on the question: {own.foreign_gap_nats.mean:+.2f} nats with the same "
            f"texts under foreign questions, {own.gap_nats.mean:+.2f} due to the question"
        )
    notes += failed_controls(controls)
    spread = controls.templates
    if spread is not None and spread.sign_agreement < 1:
        notes.append(f"the sign depends on the prompt template ({spread.low:+.2f} to {spread.high:+.2f} nats)")
    if controls.rescored.forward is not None and not controls.rescored.forward.accepted:
        notes.append(
            "packed scores did not agree with the model's own forward (up to "
            f"{controls.rescored.forward.max_difference_nats:.2g} nats a token): all rows were scored again one by one"
        )
    if joint_mismatches := int(described.get("joint_encoding_mismatches", 0)):
        notes.append(
            f"{joint_mismatches} answers would be tokenised differently together with their prompt: "
            "this chat template does not end at a token boundary"
        )
    notes += [f"matching: {f.message} (for example {f.items[0]})" for f in controls.matching]
    return tuple(notes)
