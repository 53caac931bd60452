"""A study: every arm measured the same way, taken up where it stopped, and no arm stops the others."""

from __future__ import annotations

import json
import sys

import pytest
from conftest import tea_items

from conviction.cli import main

YAML = """
name: tea
title: How is tea best?
poles:
  plain:
    label: no milk
    context: plain.md
    graph: [[milk, "-", taste], [leaves, "+", taste], [taste, "+", joy]]
  milky:
    label: milk
    context: milky.md
    graph: [[milk, "+", taste], [leaves, "+", taste], [taste, "+", joy]]
target: milky
items: [items.jsonl]
"""


def items():
    """Six propositions, three of them held out, and facts in both splits."""
    found = tea_items(6)
    facts = [item for item in found if item["role"] in ("neighbour", "control")]
    more = [{**f, "id": f"{f['id']}-{n}", "proposition": f"{f['proposition']}-{n}", "split": split}
            for f in facts for n, split in ((1, "test"), (2, "test"), (3, "train"))]  # fmt: skip
    return [
        {**i, "split": "test" if i["proposition"] in ("p0", "p1", "p2") else "train"} for i in found if i not in facts
    ] + more


@pytest.fixture
def call(tmp_path, monkeypatch, capsys, tiny_folder, write_topic):
    """``conviction study`` on a tiny model and topic; returns (code, stdout, stderr)."""
    topic = write_topic(yaml=YAML, items=items())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONVICTION_CACHE", str(tmp_path / "cache"))

    def run(*arguments, arms="system_prompt,sft", form="json"):
        fixed = ["study", str(topic), "--model", str(tiny_folder), "--dtype", "fp32", "--guard", "off"]
        chosen = ["--interventions", arms, "--wear", "1", "--format", form, "--run", "run"]
        monkeypatch.setattr(sys, "argv", ["conviction", *fixed, *chosen, *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return run


SHORT = ("-o", "sft.max_steps=2", "-o", "sft.learning_rate=1e-2")


def test_every_arm_is_judged_and_every_number_has_its_rows(call, tmp_path):
    code, out, err = call(*SHORT)
    assert code == 0, err
    found = json.loads(out)
    assert [arm["name"] for arm in found["arms"]] == ["system_prompt", "sft"]
    for arm in found["arms"]:
        assert arm["failure"] is None
        assert arm["judgement"]["verdict"] in {"none", "slogan", "shallow", "deep", "broken"}
        folder = tmp_path / "run" / arm["folder"]
        named = {line["id"] for line in map(json.loads, (folder / "samples.jsonl").read_text().splitlines())}
        depth = json.loads((folder / "depth.json").read_text())["readings"]
        assert depth
        assert all(sample in named for reading in depth for sample in reading["samples"])
        metrics = {r["metric"] for r in depth}
        for finding in arm["judgement"]["findings"]:
            if finding["metric"] not in ("shift", "robustness"):
                assert set(finding["readings"]) <= metrics
    prompt, trained = found["arms"]
    assert prompt["tokens_more"] > 10
    assert trained["tokens_more"] == 0
    assert trained["expected"] is not None
    frozen = (tmp_path / "run/arms/sft/forecast.json").stat().st_mtime_ns
    assert frozen < (tmp_path / "run/arms/sft/steps.jsonl").stat().st_mtime_ns


def test_a_study_that_was_cut_off_ends_with_the_same_numbers(call, tmp_path, monkeypatch):
    code, whole, _ = call(*SHORT)
    assert code == 0
    (tmp_path / "run").rename(tmp_path / "whole")
    import conviction.study as module

    real, calls = module._once, []

    def cut(*arguments):
        calls.append(arguments[1])
        if len(calls) == 4:  # before, depth, applying of the first arm are there
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(module, "_once", cut)
    code, _, err = call(*SHORT)
    assert code == 2
    assert "goes on from there" in err
    monkeypatch.setattr(module, "_once", real)
    code, again, err = call(*SHORT)
    assert code == 0, err
    assert "resuming" in err

    def judged(text):
        return [arm["judgement"] for arm in json.loads(text)["arms"]]

    assert judged(again) == judged(whole)


def test_a_failing_arm_does_not_stop_the_others(call):
    code, out, err = call(*SHORT, arms="rome,system_prompt")  # the topic has no facts
    assert code == 0, err
    first, second = json.loads(out)["arms"]
    assert (first["name"], first["failure"]) == ("system_prompt", None)
    assert "holds no facts" in second["failure"]["message"]
    assert second["failure"]["hint"]


def test_a_spent_budget_leaves_arms_out_and_says_so(call):
    code, out, _ = call("--budget", "0", form="md")
    assert code == 0
    assert out.count("left out") == 2
    assert "the budget of 0 minutes was spent" in out


def test_bad_arms_and_options_are_refused(call):
    code, _, err = call(arms="system_promt")
    assert code == 2
    assert "system_prompt" in err
    code, _, err = call("-o", "dpo.beta=0.1")
    assert code == 2
    assert "names no arm of this study" in err


def test_a_second_study_in_the_same_folder_is_refused(call, tmp_path):
    from filelock import FileLock

    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"):
        code, _, err = call(*SHORT)
    assert code == 2
    assert "another study writes into" in err or "run.json" in err
