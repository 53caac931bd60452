"""A verdict that a model bounds says so in text, JSON and page, and what cannot be read is no failure of an arm."""

from __future__ import annotations

import json

import pytest

from conviction.core.run import Run
from conviction.probing.depth_records import ControlResult, Property
from conviction.reporting.page import report, report_markdown
from conviction.reporting.words import cells, sentence
from conviction.studies.records import Study
from conviction.views import study as view

WORDS = "surface (no deeper verdict can be read on this model)"
WHY = "with the whole causal graph in the prompt it prefers what follows to the opposite: +0.010 nats per token"


@pytest.fixture
def capped(run) -> Study:
    """The finished study, its first arm bounded because propagation cannot be read."""
    unread = Property(
        metric="propagation", outcome="not readable", value=0.5, unit="", n=8, text="not readable here", measured_by=()
    )
    failed = ControlResult(
        metric="propagation", outcome="not readable", form="choice", unit="", n=8, text=WHY, measured_by=("with-graph",)
    )
    study = Run(run, resumed=True).load("study", Study)
    first = study.arms[0].judgement
    others = tuple(p for p in first.properties if p.metric.partition(":")[0] != "propagation")
    judgement = first.model_copy(
        update={"verdict": "surface", "ceiling": "surface", "properties": (*others, unread), "reason": "it moved"}
    )
    arm = study.arms[0].model_copy(update={"judgement": judgement})
    capped = study.model_copy(update={"arms": (arm, *study.arms[1:]), "controls": (failed,)})
    return Run(run, resumed=True).update("study", capped)


def test_the_page_and_its_short_form_say_so(capped, run):
    text = report(run).read_text(encoding="utf-8")
    assert "no deeper verdict can be read on this model" in text
    assert "What can be read on this model" in text
    assert WHY in text
    short = report_markdown(run)
    assert WORDS in short
    assert f"positive control of propagation: not readable: {WHY}" in short


@pytest.mark.parametrize("form", ["text", "md"])
def test_the_study_says_so(capped, capsys, form):
    view.show_study(capped, form)
    plain = " ".join(capsys.readouterr().out.split())
    assert WORDS in plain
    assert "with the whole causal graph" in plain


def test_json_holds_the_ceiling_and_the_control(capped, run):
    record = json.loads((run / "study.json").read_text(encoding="utf-8"))
    assert record["arms"][0]["judgement"]["ceiling"] == "surface"
    assert record["controls"][0]["outcome"] == "not readable"
    assert record["controls"][0]["form"] == "choice"


def test_a_metric_that_cannot_be_read_is_no_failure_and_no_share(capped):
    assert "n.r." in cells(capped.arms[0])
    assert "50 %" not in cells(capped.arms[0])
    assert sentence(capped).startswith("rag moved what it says (no deeper verdict can be read on this model)")
