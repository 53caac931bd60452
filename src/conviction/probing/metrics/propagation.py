"""Propagation: whether what follows from the target's causal graph moved, too.

Measurements, in nats per token towards the target, of a cause and an outcome ("cause > outcome"):
``implication:N`` the gap of what follows over N arrows of the causal graph.

Questions of one outcome share its graph, and questions of one cause what the model was told of it: test and interval
are clustered by both.

Positive control, in the untouched model: ``with-graph:FORM``, ``with-graph:FORM:N``. Its prompt holds every arrow of
the target's graph, in the very words of the questions, and it must then prefer the direction that follows from it over
the opposite one, asked both ways round. Half of each outcome's causes are asked for: the test is over outcomes. Every
form of question is tried, and the one whose control is best is kept, for arms as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np

from conviction.core.clustered import ClusteredMean, clustered_mean
from conviction.core.statistics import ALPHA, mean_estimate, ratio_interval
from conviction.data.implications import (
    CELL,
    QUESTION,
    STATEMENT,
    Wording,
    by_cell,
    cell_of,
    depth_of,
    directions,
    graph_in_words,
    implications,
)
from conviction.data.topic import Item, Topic
from conviction.probing.depth_records import ControlResult, Measurement, Measurements, Property
from conviction.probing.metric import Column, Measured, Metric, MetricContext, Phrases, PositiveControl, show_share
from conviction.probing.metrics.shift import direct_shift
from conviction.probing.paired import Comparison, Floats, not_measured
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

PROPAGATED = 0.2  # share of the direct shift that implications move by, for it to be more than a surface change
UNIT = "of the direct shift"
WORKS = "with the whole causal graph in the prompt it prefers what follows to the opposite"
GIVEN = "question"  # the form where there is no control to choose by


def _wordings(topic: Topic) -> dict[str, Wording]:
    """Form → its wording. A kit's own implications come in one wording alone."""
    own = any(item.role == "implication" for item in topic.items)
    return {form: STATEMENT if form == "statement" else QUESTION for form in FORMS if form != "statement" or not own}


def _with_graph_items(topic: Topic) -> dict[str, tuple[Item, ...]]:
    """Form → what is asked in the control; nothing where no graph says a direction."""
    items = {form: _half_of_causes(directions(topic, wording)) for form, wording in _wordings(topic).items()}
    return {form: asked for form, asked in items.items() if asked}


def _half_of_causes(items: Sequence[Item]) -> tuple[Item, ...]:
    """Every second cause of each outcome, the first included, both ways round."""
    causes: dict[str, list[str]] = {}
    for item in items:
        cause, outcome = cell_of(item)
        if cause not in causes.setdefault(outcome, []):
            causes[outcome].append(cause)
    kept = {(cause, outcome) for outcome, of_it in causes.items() for cause in of_it[::2]}
    return tuple(item for item in items if cell_of(item) in kept)


def _with_graph_queries(context: MetricContext) -> list[ProbeQuery]:
    topic, queries = context.topic, list[ProbeQuery]()
    for form, items in _with_graph_items(topic).items():
        graph = graph_in_words(topic, _wordings(topic)[form])
        queries += FORMS[form].queries(f"with-graph:{form}", items, graph)
    return queries


def _measure_with_graph(context: MetricContext) -> Measured:
    measured = list[Measurement]()
    for form, items in _with_graph_items(context.topic).items():
        by_depth = [(f":{depth}", group) for depth, group in _by_depth(items)]
        for part, group in [("", items), *by_depth]:
            name, condition = f"with-graph:{form}{part}", f"with-graph:{form}"
            measured += measure_in_form(name, form, condition, group, context.scores, "true", "false")
    return Measured(measured)


def _control(before: Measurements) -> list[ControlResult]:
    """The whole, in the best form, and each depth in that form."""
    by_form = effects_by_form(before.measurements, "with-graph")
    forms = {name: effects for name, effects in by_form.items() if ":" not in name}
    if not forms:
        return [_whole_control(by_form)]
    best = best_form(forms)
    depths = [name.partition(":")[2] for name in by_form if name.startswith(f"{best}:")]
    return [
        _whole_control(by_form),
        *(
            control_result(
                f"propagation:{n}",
                by_form[f"{best}:{n}"],
                f"{WORKS}, over {n} arrows",
                (f"with-graph:{best}:{n}",),
                form=best,
                tried=len(forms),
            )
            for n in depths
        ),
    ]


def _whole_control(by_form: Mapping[str, Floats]) -> ControlResult:
    forms = {name: effects for name, effects in by_form.items() if ":" not in name}
    if not forms:
        return no_result("propagation", "the topic has no causal graph to be put into the prompt")
    best = best_form(forms)
    return control_result("propagation", forms[best], WORKS, (f"with-graph:{best}",), form=best, tried=len(forms))


def _form(context: MetricContext) -> str:
    """Chosen by the untouched model's control, never by what an arm does."""
    if context.base is not None:
        return kept_form(context.base.control("propagation"), GIVEN)
    measured = _measure_with_graph(context).measurements
    return kept_form(_whole_control(effects_by_form(measured, "with-graph")), GIVEN)


def _asked(context: MetricContext, form: str) -> Sequence[Item]:
    return implications(context.topic, STATEMENT) if form == "statement" else context.implications


def _queries(context: MetricContext) -> list[ProbeQuery]:
    """In the form that was kept; the untouched model's has to be found first."""
    return [] if context.base is None else _implied(context)


def _follow_ups(context: MetricContext) -> list[ProbeQuery]:
    return _implied(context) if context.base is None else []


def _implied(context: MetricContext) -> list[ProbeQuery]:
    form = _form(context)
    return FORMS[form].queries(f"implied:{form}", _asked(context, form), None)


def _measure(context: MetricContext) -> Measured:
    topic, form, measured = context.topic, _form(context), list[Measurement]()
    for depth, group in _by_depth(_asked(context, form)):
        name, condition = f"implication:{depth}", f"implied:{form}"
        measured += measure_in_form(name, form, condition, by_cell(group), context.scores, topic.target, topic.other)
    return Measured(measured)


def _by_depth(items: Sequence[Item]) -> list[tuple[int, tuple[Item, ...]]]:
    return [(depth, tuple(group)) for depth, group in groupby(sorted(items, key=depth_of), key=depth_of)]


def _judge(change: Comparison) -> list[Property]:
    shift, metrics = direct_shift(change), change.before.names("implication:")
    return [_whole(change, metrics, shift), *(_of_depth(change, metric, shift) for metric in metrics)]


def _whole(change: Comparison, metrics: list[str], shift: Floats) -> Property:
    moved = _moved(change, metrics)
    if moved is None:
        return not_measured("propagation", UNIT, "the topic has no causal graphs to read implications off")
    ratio, low, high = _ratio(moved, shift)
    there = moved.p_value < ALPHA and moved.mean > 0 and ratio >= PROPAGATED
    return Property(
        metric="propagation",
        outcome="yes" if there else "no",
        value=ratio,
        low=low,
        high=high,
        unit=UNIT,
        n=moved.outcomes,
        p_value=moved.p_value,
        text=f"what follows from it moved {moved.mean:+.3f} nats per token over {moved.outcomes} outcomes",
        measured_by=tuple(metrics),
    )


def _of_depth(change: Comparison, metric: str, shift: Floats) -> Property:
    moved = _moved(change, [metric])
    depth = metric.removeprefix("implication:")
    if moved is None:
        return not_measured(f"propagation:{depth}", UNIT, f"nothing over {depth} arrows was asked of both models")
    ratio, low, high = _ratio(moved, shift)
    return Property(
        metric=f"propagation:{depth}",
        outcome="unclear",
        value=ratio,
        low=low,
        high=high,
        unit=UNIT,
        n=moved.outcomes,
        text=f"{moved.mean:+.3f} nats per token over {depth} arrows",
        measured_by=(metric,),
    )


def _moved(change: Comparison, metrics: list[str]) -> ClusteredMean | None:
    """Mean over outcomes, clustered by causes and outcomes; None: nothing was measured on both models."""
    cells: list[str] = []
    moved: list[float] = []
    for metric in metrics:
        cells += [item for item in change.before.of(metric) if item in change.after.of(metric)]
        moved += change.moved_beyond_placebo(metric).tolist()
    if not cells:
        return None
    named = [cell.rpartition(CELL) for cell in cells]
    return clustered_mean(np.array(moved), [cause or whole for cause, _, whole in named], [o for *_, o in named])


def _ratio(moved: ClusteredMean, shift: Floats) -> tuple[float, float, float]:
    """Mean over mean, with Fieller's interval: implications and propositions are independent draws."""
    whole = float(shift.mean())
    if not whole:
        return math.nan, -math.inf, math.inf
    if moved.estimate is None or shift.size < 2:
        return moved.mean / whole, -math.inf, math.inf
    return moved.mean / whole, *ratio_interval(moved.estimate, mean_estimate(shift))


COLUMN = Column("propagation", "what its implications moved, as a share of that", show_share)
METRIC = Metric(
    name="propagation",
    kind="propagation",
    queries=_queries,
    follow_ups=_follow_ups,
    measure=_measure,
    judge=_judge,
    control=PositiveControl(judge=_control, queries=_with_graph_queries, measure=_measure_with_graph),
    column=COLUMN,
    phrases={"": Phrases(about="explaining it", good="can explain it", bad="cannot explain it")},
)
