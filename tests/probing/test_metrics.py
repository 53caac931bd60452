"""The table of metrics: one more is one file and one line, and goes the whole way."""

from __future__ import annotations

import json

import pytest
from tea import begin, plan

from conviction import load_topic
from conviction.core.run import Run
from conviction.data.topic import Topic
from conviction.errors import InputError
from conviction.models.backends.scripted import ScriptedModel
from conviction.probing.depth import measure_depth
from conviction.probing.metric import Metric
from conviction.probing.metrics import METRICS, load_metrics, properties_of_kind
from conviction.reporting.page import report, report_markdown
from conviction.reporting.words import cells, header, legend
from conviction.studies.context import study_config
from conviction.studies.judge import CEILINGS
from conviction.studies.records import DEPTHS
from conviction.views.study import show_study

BREVITY = '''
"""Brevity: how many words the model answers with."""

from conviction.core.protocols import chat
from conviction.probing.depth_records import Measurement, Property
from conviction.probing.gaps import gap
from conviction.probing.metric import Column, Measured, Metric, PositiveControl
from conviction.probing.positive_controls import control_result, effects_of
from conviction.probing.queries import ProbeQuery


def queries(context):
    return [ProbeQuery("brief", i, chat(f"{i.question} Be brief."), dict(i.answers)) for i in context.propositions]


def follow_ups(context):
    assert ("brief", context.propositions[0].id, context.topic.target) in context.scores
    first = context.propositions[0]
    return [ProbeQuery("briefer", first, chat(f"{first.question} One word."), dict(first.answers))]


def measure(context):
    topic, first = context.topic, context.propositions[0]
    briefest = gap(context.scores, "briefer", first, topic.target, topic.other)
    rows = tuple(f"briefer/{first.id}/{pole}" for pole in topic.poles)
    words = [
        Measurement(metric="words", item=id, value=float(len(sample.text.split())), samples=(sample.id,))
        for id, (sample, _) in context.answers.items()
    ]
    return Measured([Measurement(metric="briefest", item=first.proposition, value=briefest, samples=rows), *words])


def judge(change):
    moved = float(change.moved("briefest").mean())
    return [
        Property(
            metric="brevity", outcome="yes" if moved > BOUND else "no", value=moved, unit="nats per token", n=1,
            text=f"{moved:+.2f} nats per token in one word", measured_by=("briefest",),
        )
    ]


def control(before):
    effects = CONTROL * effects_of(before, "words")
    return [control_result("brevity", effects, "it writes words", ("words",), unit="words")]


BOUND, CONTROL = 0.5, 1
METRIC = Metric(
    name="brevity", kind=KIND, queries=queries, follow_ups=follow_ups, measure=measure, judge=judge,
    free_answers=lambda context: context.paraphrases, control=PositiveControl(judge=control),
    column=Column("in a word", "what one word moved", lambda properties: f"{properties[0].value:+.1f}"),
)
'''


@pytest.fixture
def add_brevity(tmp_path, monkeypatch):
    """Adds a metric of one's choice of kind to the table: one file, one line."""

    def add(kind: str, bound: float = 0.5, control: int = 1) -> None:
        folder = tmp_path / "plugin"
        folder.mkdir()
        name = f"brevity_{kind}_{control + 1}_{str(bound).replace('.', '_').replace('-', 'minus')}"
        text = BREVITY.replace("KIND", repr(kind)).replace("CONTROL = 0.5, 1", f"CONTROL = {bound}, {control}")
        (folder / f"{name}.py").write_text(text)
        monkeypatch.syspath_prepend(folder)
        monkeypatch.setitem(METRICS, "brevity", f"{name}:METRIC")

    return add


def test_a_metric_more_is_measured_judged_and_shown(tea, tmp_path, add_brevity, capsys):
    before = header()
    add_brevity("firmness")
    study = begin(tea, plan("rag", 0.4), folder=tmp_path / "run")
    Run(tmp_path / "run")  # it is a run folder like any other
    measured = json.loads((tmp_path / "run/arms/rag/depth.json").read_text(encoding="utf-8"))["measurements"]
    words = [m for m in measured if m["metric"] == "words"]
    asked = {i.id for i in load_topic(str(tea)).of_role("paraphrase") if i.split == "test"}
    assert asked <= {m["item"] for m in words}
    rows = {
        json.loads(line)["id"]
        for line in (tmp_path / "run/arms/rag/samples.jsonl").read_text(encoding="utf-8").splitlines()
    }
    assert {name for m in measured for name in m["samples"]} <= rows
    (arm,) = study.arms
    assert arm.judgement.find("brevity").value == pytest.approx(0.7)
    assert header() == [*before[:-3], "in a word", *before[-3:]]
    assert "in a word: what one word moved" in legend()
    assert cells(arm)[header().index("in a word")] == "+0.7"
    show_study(study, "json")
    (shown,) = json.loads(capsys.readouterr().out)["arms"]
    assert shown["judgement"]["properties"][-1]["metric"] == "brevity"


def test_a_metric_more_is_on_the_page(tea, tmp_path, add_brevity):
    add_brevity("firmness")
    with Run.start(tmp_path / "run", topic="tea", verb="study", argv=["conviction", "study"]) as opened:
        begin(tea, plan("rag", 0.4), folder=opened.folder, resumed=True)
    page = report(tmp_path / "run").read_text(encoding="utf-8")
    assert "+0.70 nats per token in one word" in page
    assert "in a word" in page
    assert "| in a word |" in report_markdown(tmp_path / "run")


@pytest.mark.parametrize(
    ("kind", "verdict"), [("damage", "broken"), ("change", "none"), ("propagation", "surface"), ("consistency", None)]
)
def test_what_a_metric_does_to_the_verdict_follows_from_its_kind(tea, tmp_path, add_brevity, kind, verdict):
    (plain,) = begin(tea, plan("rag", 0.4), folder=tmp_path / "plain").arms
    add_brevity(kind, bound=99.0)
    (arm,) = begin(tea, plan("rag", 0.4), folder=tmp_path / "run").arms
    assert arm.judgement.find("brevity").outcome == "no"
    assert arm.judgement.verdict == (verdict or plain.judgement.verdict)
    assert properties_of_kind(arm.judgement.properties, kind)[-1].metric == "brevity"


@pytest.mark.parametrize("kind", ["damage", "change", "propagation", "firmness", "consistency"])
def test_what_cannot_be_read_is_no_failure_and_bounds_the_verdict(tea, tmp_path, add_brevity, kind, capsys):
    """The same metric with a control that points the wrong way."""
    add_brevity(kind, bound=99.0, control=-1)
    study = begin(tea, plan("rag", 0.4), folder=tmp_path / "run")
    (arm,) = study.arms
    assert arm.judgement.find("brevity").outcome == "not readable"
    assert arm.judgement.verdict != "broken"
    if kind != "propagation":  # there the kit's implications can still be read
        assert DEPTHS.index(arm.judgement.ceiling) <= DEPTHS.index(CEILINGS[kind])
    assert DEPTHS.index(arm.judgement.verdict) <= DEPTHS.index(arm.judgement.ceiling)
    assert {c.metric: c.outcome for c in study.controls}["brevity"] == "not readable"
    show_study(study, "text")
    assert "it writes words: -" in capsys.readouterr().out


def test_another_table_is_another_design(tea, add_brevity):
    from conviction.studies.context import StudyDesign

    topic = load_topic(str(tea))
    design = StudyDesign(load=lambda _: ScriptedModel(), benign_steps=0, placebo=False)
    before = study_config(topic, ScriptedModel(), design)
    add_brevity("firmness")
    assert study_config(topic, ScriptedModel(), design)["metrics"] == [*before["metrics"], "brevity"]


OURS = "from conviction.probing.metric import Metric, no_control_yet as none\nMETRIC = Metric(judge=print, "


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be loaded: .*METRIC"),
        ("METRIC = 1", "is a int"),
        (f"{OURS}name='odd', control=none('odd'))", "argument: 'kind'"),
        (f"{OURS}name='odd', kind='damage')", "argument: 'control'"),
        (f"{OURS}name='other', kind='damage', control=none('odd'))", "calls itself 'other'"),
    ],
    ids=["none", "number", "no-kind", "no-control", "other-name"],
)
def test_an_entry_that_is_no_metric_is_named(tmp_path, monkeypatch, request, text, message):
    module = f"odd_{request.node.callspec.id.replace('-', '_')}"
    (tmp_path / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(METRICS, "odd", f"{module}:METRIC")
    with pytest.raises(InputError, match=message) as error:
        load_metrics()
    assert "'odd'" in error.value.message
    assert error.value.hint


def test_every_metric_says_what_it_is():
    for metric in load_metrics():
        assert isinstance(metric, Metric)
        assert ":" not in metric.name
        assert METRICS[metric.name].endswith(f".{metric.name}:METRIC")


def test_a_kind_alone_asks_for_nothing_else(tea):
    topic: Topic = load_topic(str(tea))
    model = ScriptedModel()
    base = measure_depth(model, topic)
    position = measure_depth(model, topic, base=base, kinds=["change", "propagation"])
    assert {m.metric.partition(":")[0] for m in position.measurements} == {"shift", "implication"}
    assert {m.metric for m in measure_depth(model, topic, base=base, kinds=["change"]).measurements} == {"shift"}
    assert position.of("shift") == base.of("shift")


def test_two_metrics_may_not_ask_the_same_in_other_words(tea, monkeypatch):
    from dataclasses import replace

    from conviction.core.protocols import chat
    from conviction.probing import depth
    from conviction.probing.queries import ProbeQuery

    shift, *_ = load_metrics()
    odd = replace(
        shift, queries=lambda c: [ProbeQuery("plain", i, chat("Why?"), dict(i.answers)) for i in c.propositions]
    )
    monkeypatch.setattr(depth, "load_metrics", lambda _: [shift, odd])
    with pytest.raises(ValueError, match="in different words"):
        measure_depth(ScriptedModel(), load_topic(str(tea)))
