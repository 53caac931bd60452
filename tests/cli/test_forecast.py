"""``conviction forecast`` and ``conviction compare``, as a user meets them."""

from __future__ import annotations

import json
import os
import re

import pytest
from commands import failed
from tea import tea_items
from tiny import write_data

from conviction.interventions.dpo import Dpo

QUICK = ("-o", "max_steps=4", "-o", "rank=2", "-o", "sample_tokens=8", "--dtype", "fp32")


@pytest.fixture
def topic(write_topic):
    yaml = (
        "name: tea\ntitle: Tea?\npoles:\n  plain: {label: no milk, context: plain.md}\n"
        "  milky: {label: milk, context: milky.md}\ntarget: plain\nitems: [items.jsonl]\n"
    )
    return str(write_topic(items=tea_items(15), yaml=yaml))


@pytest.mark.long
def test_it_tells_a_verdict_and_keeps_it(run, topic, tiny_folder, tmp_path):
    code, out, err = run("forecast", "dpo", topic, "--model", str(tiny_folder), "--run", "f", "--pilot", "2", *QUICK)
    assert code in {0, 1}, err
    assert "dpo on 'tea', 4 steps" in out
    for part in ("Why", "What a flip costs", "How far to trust it", "Expected movement"):
        assert part in out
    kept = json.loads((tmp_path / "f" / "forecast.json").read_text(encoding="utf-8"))
    assert kept["steps"] == 4
    assert (code == 0) == (kept["verdict"]["kind"] in {"trainable", "none"})
    asked = [o for o in kept["pair_forecasts"] if o["split"] == "test"]
    assert {o["role"] for o in asked} == {"target", "paraphrase", "neighbour", "control"}
    assert asked[0]["question"]["wanted"].startswith("Plain")
    assert json.loads((tmp_path / "f" / "run.json").read_text(encoding="utf-8"))["status"] == "done"


@pytest.mark.long
def test_a_sweep_is_a_map(run, topic, tiny_folder):
    sweep = ("--sweep", "beta=0.05,0.1", "--sweep", "learning_rate=1e-5..1e-3:3")
    common = ("forecast", "dpo", topic, "--model", str(tiny_folder), "--pilot", "2", *sweep, *QUICK)
    _, out, _ = run(*common)
    assert "beta \\ learning_rate" in out
    assert "0.001" in out
    _, out, _ = run(*common, "--format", "json")
    settings = json.loads(out)["settings"]
    assert len(settings) == 6
    assert all(s["seconds"] > 0 for s in settings)
    code, out, _ = run(*common[:-2], "--sweep", "loss=dpo,ipo", "--format", "md")
    assert code in {0, 1}
    assert "**Why**" in out


@pytest.mark.long
def test_the_search_of_tune_is_forecast_without_training(run, topic, tiny_folder):
    common = ("forecast", "dpo", topic, "--model", str(tiny_folder), "--pilot", "2", "-o", "rank=2", "--dtype", "fp32")
    _, out, err = run(*common, "-o", "beta=0.1", "--sweep", "search", "--format", "json")
    forecast = json.loads(out)
    assert [s["options"] for s in forecast["settings"]] == [{"learning_rate": r} for r in Dpo.search["learning_rate"]]
    assert (forecast["options"]["epochs"], forecast["options"]["schedule"]) == (None, "constant"), err
    _, out, _ = run(*common, "-o", "beta=0.1", "--sweep", "search")
    assert re.search(r"Farthest\n\s+learning_rate=\S+\s+\S+ nats per token expected", out)
    given = ("-o", "beta=0.1", "-o", "learning_rate=1e-4")
    _, _, err = run(*common, *given, "--sweep", "search")
    assert "dpo has no settings to search" in err


@pytest.mark.long
def test_data_are_asked_a_topic_or_other_pairs(run, topic, tiny_folder, tmp_path):
    data = str(write_data(tmp_path / "pairs.jsonl"))
    common = (
        "forecast",
        "dpo",
        "--data",
        data,
        "--model",
        str(tiny_folder),
        "--pilot",
        "2",
        "--format",
        "json",
        *QUICK,
    )
    _, out, _ = run(*common)
    assert json.loads(out)["flips"] is None
    _, out, _ = run(*common, "--test", topic)
    assert json.loads(out)["flips"]["pairs"] == 10
    _, out, _ = run(*common, "--test", data)
    assert json.loads(out)["flips"]["pairs"] == len((tmp_path / "pairs.jsonl").read_text(encoding="utf-8").splitlines())


@pytest.mark.long
def test_a_forecast_is_frozen_with_the_run_and_scored_after_it(run, topic, tiny_folder, tmp_path):
    model = str(tiny_folder)
    code, out, err = run("apply", "dpo", topic, "--model", model, "--forecast", "--guard", "off", "--run", "r", *QUICK)
    assert code == 0, err
    assert "conviction compare r" in " ".join(out.split())
    order = [(tmp_path / "r" / name).stat().st_mtime_ns for name in ("forecast.json", "steps.jsonl")]
    assert order == sorted(order)
    code, out, err = run("compare", "r", "--model", model, "--dtype", "fp32")
    assert code == 0, err
    assert "flips of" in out
    assert "Spearman" in out or "pair by pair" not in out
    score = json.loads((tmp_path / "r" / "comparison.json").read_text(encoding="utf-8"))
    assert score["pairs"] == 10
    assert score["real_nats"] is not None
    code, out, _ = run("compare", "r", "--model", model, "--dtype", "fp32", "--format", "json")
    assert json.loads(out) == score


def test_what_cannot_be_compared_is_said(run, topic, tiny_folder, tmp_path):
    assert "holds no forecast" in failed(run("compare", "nowhere"))
    run("forecast", "dpo", topic, "--model", str(tiny_folder), "--run", "f", "-o", "tune=full", *QUICK[:2], *QUICK[-2:])
    assert "has not been trained" in failed(run("compare", "f"))
    (tmp_path / "f" / "outcome.json").write_text("{")
    assert "no readable outcome" in failed(run("compare", "f"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dpo",), "neither a topic nor data"),
        (("dpoo", "obesity"), "did you mean 'dpo'"),
        (("dpo", "obesity", "--sweep", "rank=1,2"), "cannot be swept"),
        (("dpo", "obesity", "--sweep", "beta=a"), "beta is 'a'"),
        (("dpo", "obesity", "--test", "nowhere.jsonl"), "nowhere.jsonl"),
    ],
)
def test_bad_input_is_named_before_a_model_is_loaded(run, arguments, message):
    assert message in failed(run("forecast", *arguments, "--model", "no-such-model"))


def test_several_processes_make_no_forecast(run, topic, tiny_folder, monkeypatch):
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    monkeypatch.setitem(os.environ, "RANK", "0")
    arguments = ("apply", "dpo", topic, "--model", str(tiny_folder), "--forecast", "--run", "r", *QUICK)
    assert "made by one process" in failed(run(*arguments))
