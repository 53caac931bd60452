"""Decisions: whether what to do in a case moved, asked in words that the topic's claims do not use.

A second kind of implication beside ``propagation``: nobody can answer by repeating words that were trained
(Cohen et al. 2307.12976 call such consequences ripple effects).

Measurements, in nats per token towards the target, of a decision: ``decision`` the gap.

Positive control, in the untouched model: ``advised:FORM``, the gap with the target's context as system prompt less that
with the other side's. Every form of question is tried, and the one whose control is best is kept, for the arms as well.
"""

from __future__ import annotations

from collections.abc import Mapping

from conviction.core.statistics import ALPHA, mean_test
from conviction.probing.depth_records import ControlResult, Measurement, Measurements, Property
from conviction.probing.metric import Column, Measured, Metric, MetricContext, Phrases, PositiveControl, show_share
from conviction.probing.metrics.shift import direct_shift
from conviction.probing.paired import Comparison, Floats, share_of
from conviction.probing.positive_controls import (
    best_form,
    control_result,
    effects_by_form,
    kept_form,
    measure_in_form,
    no_result,
)
from conviction.probing.queries import ProbeQuery
from conviction.probing.question_forms import FORMS

FOLLOWED = 0.2  # share of the direct shift that decisions move by, for it to be more than a surface change
UNIT = "of the direct shift"
TRIED = ("question", "choice")  # true or false would be two questions more a decision, and one more test
CONTROLLED = 2  # every second decision is put to the control: both contexts are long


def _advised_queries(context: MetricContext) -> list[ProbeQuery]:
    topic = context.topic
    if not all(side.context for side in topic.poles.values()):
        return []
    return [
        query
        for form in TRIED
        for pole, side in topic.poles.items()
        for query in FORMS[form].queries(f"advised:{form}:{pole}", context.decisions[::CONTROLLED], side.context)
    ]


def _measure_advised(context: MetricContext) -> Measured:
    """The gap with the target's context, less that with the other side's."""
    topic, measured = context.topic, list[Measurement]()
    if not _advised_queries(context):
        return Measured(())
    for form in TRIED:
        with_ours, with_theirs = (
            measure_in_form(
                f"advised:{form}",
                form,
                f"advised:{form}:{pole}",
                context.decisions[::CONTROLLED],
                context.scores,
                topic.target,
                topic.other,
            )
            for pole in (topic.target, topic.other)
        )
        measured += [
            one.model_copy(update={"value": one.value - two.value, "samples": (*one.samples, *two.samples)})
            for one, two in zip(with_ours, with_theirs, strict=True)
        ]
    return Measured(measured)


def _control(before: Measurements) -> list[ControlResult]:
    forms = effects_by_form(before.measurements, "advised")
    if not forms:
        why = "the kit has no decisions" if not before.of("decision") else "the sides have no contexts to decide by"
        return [no_result("decisions", why)]
    return [_whole_control(forms)]


def _whole_control(forms: Mapping[str, Floats]) -> ControlResult:
    if not forms:
        return no_result("decisions", "nothing was asked")
    best, what = best_form(forms), "one side's context in place of the other's moves decisions"
    return control_result("decisions", forms[best], what, (f"advised:{best}",), form=best, tried=len(forms))


def _form(context: MetricContext) -> str:
    """Chosen by the untouched model's control, never by what an arm does."""
    if context.base is not None:
        return kept_form(context.base.control("decisions"), TRIED[0])
    measured = _measure_advised(context).measurements
    return kept_form(_whole_control(effects_by_form(measured, "advised")), TRIED[0])


def _queries(context: MetricContext) -> list[ProbeQuery]:
    """In the form that was kept; the untouched model's has to be found first."""
    return [] if context.base is None else _decided(context)


def _follow_ups(context: MetricContext) -> list[ProbeQuery]:
    return _decided(context) if context.base is None else []


def _decided(context: MetricContext) -> list[ProbeQuery]:
    form = _form(context)
    return FORMS[form].queries(f"decided:{form}", context.decisions, None)


def _measure(context: MetricContext) -> Measured:
    topic, form = context.topic, _form(context)
    condition = f"decided:{form}"
    return Measured(
        measure_in_form("decision", form, condition, context.decisions, context.scores, topic.target, topic.other)
    )


def _judge(change: Comparison) -> list[Property]:
    moved = change.moved_beyond_placebo("decision")
    if not moved.size:
        return []  # a kit need not have any
    test = mean_test(moved)
    ratio, low, high = share_of(moved, direct_shift(change))
    there = test.p_value < ALPHA and test.interval.mean > 0 and ratio >= FOLLOWED
    return [
        Property(
            metric="decisions",
            outcome="yes" if there else "no",
            value=ratio,
            low=low,
            high=high,
            unit=UNIT,
            n=test.n,
            p_value=test.p_value,
            text=f"decisions moved {test.interval.mean:+.3f} nats per token over {test.n} cases",
            measured_by=("decision",),
        )
    ]


METRIC = Metric(
    name="decisions",
    kind="propagation",
    queries=_queries,
    follow_ups=_follow_ups,
    measure=_measure,
    judge=_judge,
    control=PositiveControl(judge=_control, queries=_advised_queries, measure=_measure_advised),
    column=Column("decisions", "what decisions moved, as a share of that", show_share),
    phrases={"": Phrases(about="deciding by it", good="decides by it", bad="does not decide by it")},
)
