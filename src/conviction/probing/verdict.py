"""From statistics and controls to a verdict. Pure functions.

A preference is said only where two gaps agree: that of the texts under their own question, and what is left of it
when the same texts under foreign questions are taken off. Both have to be significant (each at 5 %; as both must be,
no correction for two tests is due: Berger 1982, intersection-union), and the controls must hold. Else the verdict
says what was seen.
"""

from __future__ import annotations

from collections.abc import Iterator

from conviction.core.statistics import ALPHA
from conviction.data.topic import Topic
from conviction.probing.records import ConditionalGap, Controls, ForcedChoice, Summary


def with_verdict(topic: Topic, summary: Summary, controls: Controls, choice: ForcedChoice | None) -> Summary:
    """The summary with its verdict in words, and the pole that the verdict says is preferred, if any.

    choice  counts only where its control passed; None: not asked
    """
    side, preferred = _side(topic, summary.gap_nats.mean), False
    if summary.smallest_p >= ALPHA:
        verdict = _too_few(topic, summary)
    elif not controls.rescored.passed:
        verdict = _failed(topic, summary, controls)
    elif summary.p_value >= ALPHA:
        verdict = _none_shown(topic, summary, controls)
    elif controls.wording_null is not None and not controls.wording_null.exceeded:
        verdict = _failed(topic, summary, controls)
    elif summary.conditional is None:
        verdict = f"No verdict: no other question to ask these texts under. Observed: {_observed(topic, summary)}."
    elif not _agrees(summary, summary.conditional):
        verdict = _texts_only(topic, summary, summary.conditional)
    elif any(failed_controls(controls)):
        verdict = _failed(topic, summary, controls)
    elif choice is not None and _contradicts(summary, choice):
        verdict = (
            f"No verdict: a forced choice prefers {_side(topic, choice.gap_nats.mean)} "
            f"({choice.gap_nats.mean:+.2f} nats, p = {choice.p_value:.2g}). Observed: {_observed(topic, summary)}."
        )
    else:
        preferred = True
        verdict = (
            f"The model prefers {side} ({topic.poles[side].label}): {_observed(topic, summary)} "
            f"(p = {summary.p_value:.2g}), {_part(summary.conditional)}."
        )
    return summary.model_copy(update={"preferred_pole": side if preferred else None, "verdict": verdict})


def failed_controls(controls: Controls) -> Iterator[str]:
    """Every control that a preference needs and that did not hold, in words."""
    if not controls.rescored.passed:
        apart = controls.rescored.mean_difference_nats
        yield f"scores are not reproducible: the same answers, asked again, differ by {apart:.2g} nats per token"
    null = controls.wording_null
    if null is not None and not null.exceeded:
        yield f"the mean gap does not exceed what mere wording does ({null.mean_q95_nats:.2f} nats)"
    for pole, control in controls.positive.items():
        if not control.passed:
            moved = f"{control.shift_nats.mean:+.2f} nats, {control.moved} of {control.n}"
            yield (
                f"the positive control failed: the {pole} context as system prompt does not move the gap "
                f"towards {pole} ({moved})"
            )


def _side(topic: Topic, gap: float) -> str:
    return topic.target if gap > 0 else topic.other


def _agrees(summary: Summary, conditional: ConditionalGap) -> bool:
    """Whether the question's part of the gap is shown, and on the same side."""
    return conditional.p_value < ALPHA and conditional.gap_nats.mean * summary.gap_nats.mean > 0


def _contradicts(summary: Summary, choice: ForcedChoice) -> bool:
    return choice.readable and choice.p_value < ALPHA and choice.gap_nats.mean * summary.gap_nats.mean < 0


def _observed(topic: Topic, summary: Summary) -> str:
    side = _side(topic, summary.gap_nats.mean)
    wins = f"{side} wins {summary.wins[side]} of {summary.n}"
    return f"{wins}, mean gap {abs(summary.gap_nats.mean):.2f} nats per token towards it"


def _part(conditional: ConditionalGap) -> str:
    return f"{abs(conditional.gap_nats.mean):.2f} of it under their own questions only (p = {conditional.p_value:.2g})"


def _too_few(topic: Topic, summary: Summary) -> str:
    n = summary.n
    return (
        f"No verdict: {n} proposition{'s' * (n != 1)} cannot reach two-sided p < {ALPHA} "
        f"(the least possible is {summary.smallest_p:.4g}). Observed: {_observed(topic, summary)}."
    )


def _failed(topic: Topic, summary: Summary, controls: Controls) -> str:
    causes = "; ".join(failed_controls(controls))
    changed = _if_changed(topic, summary, controls)
    return f"No verdict: a control failed: {causes}. Observed: {_observed(topic, summary)}.{changed}"


def _if_changed(topic: Topic, summary: Summary, controls: Controls) -> str:
    """What a positive control that fails beside a clear gap means in a model that was trained to have this gap.

    The control is made for an untouched model, in which the contexts are the strongest means at hand. A model that
    was moved on purpose may hold its new side whatever stands in the prompt, and for the side it holds already the
    context has little left to move.
    """
    failed = [pole for pole, control in controls.positive.items() if not control.passed]
    if not failed or summary.p_value >= ALPHA:
        return ""
    side = _side(topic, summary.gap_nats.mean)
    why = [
        f"the {pole} context has little left to move where the answers lean to {side} already"
        if pole == side
        else f"the {pole} context no longer moves a view that was changed to {side}"
        for pole in failed
    ]
    return (
        f" If this model was changed on purpose, the control may fail because of it: {'; '.join(why)}."
        " Hold it against the untouched model, where the control can pass: `conviction compare` of two runs or more."
    )


def _none_shown(topic: Topic, summary: Summary, controls: Controls) -> str:
    detectable = summary.min_detectable_effect
    missed = f" A mean gap under {detectable:.2f} nats would be missed." if detectable else ""
    causes = [cause for cause in failed_controls(controls) if "mere wording" not in cause]
    failed = f" A control failed: {'; '.join(causes)}." if causes else ""
    return f"No preference shown: {_observed(topic, summary)}, but p = {summary.p_value:.2g}.{missed}{failed}"


def _texts_only(topic: Topic, summary: Summary, conditional: ConditionalGap) -> str:
    """Texts are preferred under their own questions; what is known of other questions decides between two verdicts."""
    side, observed = _side(topic, summary.gap_nats.mean), f"{_observed(topic, summary)} (p = {summary.p_value:.2g})"
    foreign, own = conditional.foreign_gap_nats.mean, conditional.gap_nats.mean
    elsewhere = f"under foreign questions {abs(foreign):.2f} towards {_side(topic, foreign)}"
    elsewhere += f" (p = {conditional.foreign_p_value:.2g})"
    left = f"{abs(own):.2f} towards {_side(topic, own)} due to the question (p = {conditional.p_value:.2g})"
    shown = conditional.foreign_p_value < ALPHA and foreign * summary.gap_nats.mean > 0
    if shown:
        return f"Prefers the texts of {side}, whatever is asked: {observed}; {elsewhere}, {left}."
    return (
        f"No verdict: prefers the texts of {side}, and it is not shown whether that depends on the question: "
        f"{observed}; {elsewhere}, {left}."
    )
