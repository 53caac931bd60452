"""The page of a run: whole, offline, the same bytes twice, and safe from what models write."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser

import pytest
from tea import EVIL

from conviction.cli.app import main
from conviction.core.run import Run
from conviction.errors import RunError
from conviction.reporting.next_steps import Names, next_steps
from conviction.reporting.page import report, report_markdown
from conviction.reporting.words import MEANING, plain, sentence
from conviction.studies.records import Study


class Page(HTMLParser):
    """Elements and what could reach out of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.reaching: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name == "href" and value.startswith("#"):
                self.links.append(value[1:])
            elif name in ("src", "href", "action") or name.startswith("on"):
                self.reaching.append(f"{tag} {name}={value}")

    def handle_data(self, data):
        self.text += data


def test_the_page_says_what_the_study_found(run):
    page = Page(report(run).read_text(encoding="utf-8"))
    result = json.loads((run / "study.json").read_text(encoding="utf-8"))
    shift = next(f for f in result["arms"][0]["judgement"]["properties"] if f["metric"] == "shift")
    assert f"{shift['value']:+.3f}" in page.text
    assert result["arms"][0]["judgement"]["verdict"] in page.text
    assert "this one cannot be done" in page.text
    assert page.tags.count("h1") == 1
    assert "svg" in page.tags


def test_the_page_holds_a_copy_for_programs(run):
    text = report(run).read_text(encoding="utf-8")
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert data["study"] == json.loads((run / "study.json").read_text(encoding="utf-8"))


def test_no_finding_is_shown_beside_the_rules_that_did_not_run(run):
    """ "The audit found nothing" was said of a study whose audit had left out all rules that need a model."""
    findings = json.loads((run / "findings.json").read_text(encoding="utf-8"))
    assert "PD402" in findings["skipped"]
    findings["findings"] = []
    (run / "findings.json").write_text(json.dumps(findings))
    for text in (Page(report(run).read_text(encoding="utf-8")).text, report_markdown(run)):
        assert "0 findings" in text
        assert re.search(r"Not run: [^.]*PD402[^.]*\(needs a model\)", text)
        assert "found nothing" not in text


def test_the_page_says_of_what_the_guard_warned(run):
    text = "reward margin 1.60 (sign over 1.5)"
    guard = {"zone": "warning", "violations": [], "warnings": [text], "warned_by": ["margin"]}
    steps = [{"step": n, "loss": 0.5, "grad_norm": 1.0, "guard": guard} for n in (7, 8)]
    (run / "arms/rag/steps.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    page = Page(report(run).read_text(encoding="utf-8"))
    assert f"The guard warned (margin), 2 steps, from 7 to 8: at the first {text}." in page.text


def test_the_page_reaches_nothing_and_runs_nothing(run):
    page = Page(report(run).read_text(encoding="utf-8"))
    assert page.reaching == []
    assert page.tags.count("script") == 1  # the data


def test_the_contents_lead_to_every_section(run):
    text = report(run).read_text(encoding="utf-8")
    assert set(re.findall(r'<section id="([\w-]+)"', text)) == set(Page(text).links)


def test_the_page_says_good_and_bad_units_and_what_to_do_next(run):
    page = Page(report(run).read_text(encoding="utf-8"))
    assert "there?" not in page.text
    assert "good or bad" in page.text
    assert page.text.count("difference of mean log-probabilities per token") == 1
    assert all(f"the arm {meaning}" in page.text for meaning in MEANING.values())
    study = Run(run).load("study", Study)
    for step in next_steps(study, Names(topic="tea")):
        assert step.replace("`", "") in page.text
    assert plain(study.arms[0]) in page.text
    assert page.text.index(sentence(study)) < page.text.index("One line an arm") < page.text.index("Greedy answers")


def test_what_a_topic_or_a_model_writes_is_escaped(run):
    path = run / "arms/rag/samples.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    written = [{**row, "text": EVIL if row["kind"] == "generation" else row["text"]} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in written))
    page = Page(report(run).read_text(encoding="utf-8"))
    assert page.tags.count("script") == 1
    assert "img" not in page.tags
    assert EVIL in page.text  # as text, in the command and in an answer


def test_built_twice_it_is_the_same_bytes(run):
    first = report(run).read_bytes()
    assert report(run).read_bytes() == first


def test_a_damaged_file_is_named_and_the_rest_is_shown(run):
    (run / "findings.json").write_text('{"half')
    (run / "arms/rag/samples.jsonl").write_text('{"stage": "depth"}\n')
    page = Page(report(run).read_text(encoding="utf-8"))
    assert "findings.json" in page.text
    assert "arms/rag/samples.jsonl" in page.text
    assert "What works, how deep, at what cost" in page.text


def test_another_schema_version_is_refused_with_what_to_do(run):
    head = json.loads((run / "run.json").read_text(encoding="utf-8"))
    (run / "run.json").write_text(json.dumps({**head, "schema_version": 99}))
    with pytest.raises(RunError, match="schema version 99") as error:
        report(run)
    assert "make the run again" in error.value.hint
    with pytest.raises(RunError, match=r"no readable run\.json"):
        report(run.parent)


def test_markdown_holds_the_table(run):
    text = report_markdown(run)
    assert "| rag |" in text
    assert "| steer | failed |" in text


def test_the_command_writes_page_and_pictures(run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["conviction", "report", str(run), "--png"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    assert "report.html" in capsys.readouterr().err
    assert (run / "pictures" / "comparison.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("left_out", ["pieces", "logprobs"])
def test_rows_without_pieces_or_log_probs_are_not_shown_token_by_token(run, left_out):
    """A record may hold either alone (found by fuzzing)."""
    path = run / "samples.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row["pieces"], row["logprobs"] = ["a"] * len(row["token_ids"]), [-1.0] * len(row["token_ids"])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    whole = report(run).read_text(encoding="utf-8")
    path.write_text("".join(json.dumps(row | {left_out: []}) + "\n" for row in rows), encoding="utf-8")
    assert len(report(run).read_text(encoding="utf-8")) < len(whole)
