"""What a metric of depth is: what it asks, measures, concludes from two models, and shows in a table.

A metric is one file in ``probing/metrics/`` whose ``METRIC`` is a ``Metric``, and
one line in the table ``METRICS``. Measuring, judging, tables and pages go through
that table; nothing else knows a metric's name.

Questions of all metrics are put to the model in few shared calls, so that common
beginnings are computed once: ``queries`` first, then ``follow_ups``, which may
depend on the first scores. Two metrics that ask the same share the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

from conviction.core.protocols import Generation, LanguageModel, Progress
from conviction.core.wording import percent
from conviction.data.topic import Item, Topic
from conviction.probing.depth_records import ControlResult, Measurement, Measurements, Property
from conviction.probing.paired import Comparison
from conviction.probing.positive_controls import no_result
from conviction.probing.queries import ProbeQuery, Scores
from conviction.probing.records import Sample

Kind = Literal["change", "propagation", "firmness", "consistency", "damage"]
"""What a metric's property means for the verdict:

change       evidence that the model moved; shown to be too small to be of use: 'none'; neither shown: 'not shown'
propagation  what follows moved, too; not there: 'surface'
firmness     the change holds; not there: 'shallow'
consistency  shown to be lost: 'shallow'
damage       shown to be lost, or any part of it: 'broken'; not shown to be kept: no deeper than 'shallow'

Change and propagation must survive Holm's correction.
"""
ANSWER_TOKENS = 48  # at most, of a free answer


@dataclass(frozen=True, kw_only=True)
class MetricContext:
    """What metrics ask and measure: the test split of a topic, and one model's answers to it.

    propositions  one item each; paraphrases: the same in other words
    facts         what both sides accept, or is off the topic, with true and false answers
    implications  what follows from the target's causal graph
    decisions     what either side would do, in words that its claims do not use
    base          measurements of the untouched model; None: this is the untouched model
    progress      gives a (done, total) callback for the name of a stage, or None
    scores        of the shared queries, as far as they were asked
    answers       item id → the greedy answer to its question, for items that a metric wanted one to
    """

    model: LanguageModel
    topic: Topic
    propositions: tuple[Item, ...]
    paraphrases: tuple[Item, ...]
    facts: tuple[Item, ...]
    implications: tuple[Item, ...]
    decisions: tuple[Item, ...]
    base: Measurements | None
    progress: Callable[[str], Progress | None]
    scores: Scores = field(default_factory=dict)
    answers: Mapping[str, tuple[Sample, Generation]] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """What a metric measured on one model. samples: evidence beside that of the shared calls."""

    measurements: Sequence[Measurement]
    samples: Sequence[Sample] = ()


@dataclass(frozen=True)
class Column:
    """A column of the study's table; metrics whose columns have the same title share it.

    legend  what it shows, in half a sentence
    cell    the text for the metric's properties; '' for nothing to say
    """

    title: str
    legend: str
    cell: Callable[[Sequence[Property]], str]


@dataclass(frozen=True, kw_only=True)
class Phrases:
    """A property of a changed model in words that need no definition.

    about      what it is about, for outcomes that say neither: 'explaining it'
    good, bad  what the model does where it is there, or lost: 'can explain it'; '': nothing that needs a word
    """

    about: str
    good: str = ""
    bad: str = ""


@dataclass(frozen=True, kw_only=True)
class PositiveControl:
    """What must move a metric, if it can be read on a model: put to the untouched model, with its first measurement.

    judge              what the measurements say: of the metric as a whole, of its parts where they differ
    queries            what it asks in the first shared call
    measure            numbers of its own, beside the metric's
    measure_reference  numbers of durability's reference, a model trained towards the target, where there is one
    """

    judge: Callable[[Measurements], list[ControlResult]]
    queries: Callable[[MetricContext], Sequence[ProbeQuery]] = lambda _: ()
    measure: Callable[[MetricContext], Measured] = lambda _: Measured(())
    measure_reference: Callable[[MetricContext], Measured] = lambda _: Measured(())


def no_control_yet(metric: str) -> PositiveControl:
    """That of a metric of which nobody has shown yet that it can come out either way."""
    return PositiveControl(judge=lambda _: [no_result(metric, "no control yet: not shown to discriminate")])


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric.

    name         also that of its properties, maybe with ``:part``
    kind         what the verdict does with its properties; those of a part count for damage only
    judge        properties of a change, from two models' measurements and those of controls
    control      what must move it on a model that it can be read on
    queries      what it asks in the first shared call
    follow_ups   what it asks in the second, after it saw the scores of the first
    free_answers items that it wants a greedy answer to
    measure      numbers of one model, from ``scores`` and ``answers``; it may ask more by itself
    column       where a study's table shows it; None: nowhere
    phrases      its properties in plain words, by part; '': those of a part without words of its own. ``{part}`` in
                 them is the part's name; without any, the metric's name stands for it
    """

    name: str
    kind: Kind
    judge: Callable[[Comparison], list[Property]]
    control: PositiveControl
    queries: Callable[[MetricContext], Sequence[ProbeQuery]] = lambda _: ()
    follow_ups: Callable[[MetricContext], Sequence[ProbeQuery]] = lambda _: ()
    free_answers: Callable[[MetricContext], Sequence[Item]] = lambda _: ()
    measure: Callable[[MetricContext], Measured] = lambda _: Measured(())
    column: Column | None = None
    phrases: Mapping[str, Phrases] = field(default_factory=dict)

    def own(self, properties: Sequence[Property]) -> list[Property]:
        """Those of the properties that are this metric's."""
        return [p for p in properties if p.metric.partition(":")[0] == self.name]

    def phrases_of(self, one: Property) -> Phrases:
        """The plain words for one of its properties."""
        part = one.metric.partition(":")[2]
        own = self.phrases.get(part, self.phrases.get("", None))
        if own is None:
            return Phrases(about=one.metric, good=f"has {one.metric}", bad=f"lacks {one.metric}")
        return Phrases(**{name: text.replace("{part}", part) for name, text in asdict(own).items()})


def show_share(properties: Sequence[Property]) -> str:
    """The cell of a share: of the property as a whole, not of its parts."""
    whole = next((p for p in properties if ":" not in p.metric), None)
    if whole is not None and whole.outcome == "not readable":
        return "n.r."
    return "—" if whole is None or whole.value is None else percent(whole.value)


def _show_lost(properties: Sequence[Property]) -> str:
    return ", ".join(p.metric for p in properties if p.outcome == "no")


HARM = Column("harm", "what was shown to be lost", _show_lost)
"""The column of what a change may have spoilt."""
