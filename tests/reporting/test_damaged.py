"""Run folders that are damaged, but parse; and run folders of strangers, which name files elsewhere."""

from __future__ import annotations

import json
import os
import random
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tea import BASE, YAML, begin, load, plan
from tea import items as tea_kit
from tiny import tiny_model

from conviction import apply, compare, load_topic
from conviction.core.context import Callbacks, RunContext
from conviction.core.run import Run
from conviction.errors import ConvictionError, RunError
from conviction.reporting.page import _html, report, report_markdown
from conviction.reporting.run_folder import read_run
from conviction.studies.comparison import compare_runs, load_applied_runs
from conviction.studies.context import StudyDesign
from conviction.studies.study import study

QUIET = {"guard": "off", "max_steps": 2, "batch_size": 2}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """What a tiny model learned, with a forecast, in a run folder."""
    folder = tmp_path_factory.mktemp("trained")
    write_kit(folder / "tea")
    with pytest.MonkeyPatch.context() as patch:  # a fixture of the module is made before the test has its cache
        patch.setenv("CONVICTION_CACHE", str(folder / "cache"))
        apply("dpo", tiny_model(), str(folder / "tea"), run=folder / "run", forecast_first=True, **QUIET)
    return folder / "run"


@pytest.fixture(scope="module")
def studied(tmp_path_factory) -> Path:
    """A finished study of two arms."""
    folder = tmp_path_factory.mktemp("studied")
    write_kit(folder / "tea")
    go_on(folder / "run")
    return folder / "run"


def go_on(run: Path):
    """The same study again, in its folder."""
    plans, design = (plan("rag", 0.4), plan("steer", error="no")), StudyDesign(load=load, benign_steps=0, placebo=False)
    topic = load_topic(run.parent / "tea")
    with Run.start(run, topic="tea", verb="study", argv=["conviction", "study", "tea"]) as opened:
        return study(topic, BASE, plans, opened, RunContext(), design)


@pytest.fixture
def run(studied, tmp_path) -> Path:
    """A copy of it, to be damaged."""
    return shutil.copytree(studied, tmp_path / "run")


def write_kit(folder: Path) -> None:
    folder.mkdir()
    (folder / "topic.yaml").write_text(YAML, encoding="utf-8")
    for pole in ("plain", "milky"):
        (folder / f"{pole}.md").write_text(f"Tea is best {pole}.", encoding="utf-8")
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, tea_kit())), encoding="utf-8")


def copied(folder: Path, to: Path) -> Path:
    """The records of a run, without its weights."""
    for path in folder.glob("*.json*"):
        (to / path.name).write_bytes(path.read_bytes())
    return to


def change(path: Path, change_it) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    data = change_it(data) or data
    path.write_text(json.dumps(data), encoding="utf-8")


def change_line(path: Path, change_it) -> None:
    lines = path.read_text(encoding="utf-8").split("\n")
    lines[0] = change_it if isinstance(change_it, str) else json.dumps(change_it(json.loads(lines[0])))
    path.write_text("\n".join(lines), encoding="utf-8")


DAMAGED = [
    ("before.json", "[1]", "a list, not an object"),
    ("before.json", "null", "a NoneType, not an object"),
    ("before.json", "{}", "schema version None"),
    ("before.json", lambda d: {**d, "summary": [1]}, "field 'summary'"),
    ("before.json", lambda d: d["rows"][1].pop("gap_nats"), "field 'rows.1.gap_nats': Field required"),
    ("before.json", lambda d: d["rows"][1].update(gap_nats=float("nan")), "NaN is no number of JSON"),
    ("before.json", lambda d: d["rows"][0].update(question="\ud800"), "field 'rows.0.question': half a character"),
    ("before.json", lambda d: d["rows"][1]["logp_mean"].pop("plain"), "field 'rows.1': logp_mean, tokens and samples"),
    ("before.json", lambda d: d["provenance"].update(x=deep(70)), "nested more than 64 deep"),
    ("before.json", lambda d: d["provenance"].update(x=10**99), None),
    ("before.json", lambda d: d["rows"][0].update(samples={"plain": "gone", "milky": "gone"}), "lacks 1 of the rows"),
    ("before.json", lambda d: d["provenance"].update(samples=[[1], {"a": 1}, 2, None]), None),
    ("before.json", lambda d: d["provenance"].update(samples={"a": [1]}), None),
    ("before.json", lambda d: d.update(evidence=[]), "field 'evidence': it is no part of the file"),
    ("study.json", lambda d: d["arms"][0].update(name=None), "field 'arms.0.name'"),
    ("study.json", lambda d: d["arms"][0]["judgement"].update(verdict="great"), "field 'arms.0.judgement.verdict'"),
    ("before.json", lambda d: d["summary"]["gap_nats"].update(low=["x"]), "field 'summary.gap_nats.low'"),
    ("study.json", lambda d: d.update(folder="/etc"), "field 'folder': it is no part of the file"),
    ("findings.json", lambda d: d.update(findings=[None]), "field 'findings.0'"),
    ("samples.jsonl", "1", "line 1: a int, not an object"),
    ("samples.jsonl", "null", "line 1: a NoneType, not an object"),
    ("samples.jsonl", lambda d: {**d, "logprobs": [-1.0] * 99}, "give one of each a token, or none"),
    ("samples.jsonl", lambda d: {**d, "logprobs": ["x"]}, "logprobs"),
    ("arms/rag/samples.jsonl", "[1]", "line 1: a list, not an object"),
    ("arms/rag/outcome.json", lambda d: {**d, "folder": "/etc"}, "field 'folder': it is no part of the file"),
    ("arms/rag/steps.jsonl", "1\n", "line 1: a int, not an object"),
    ("arms/rag/steps.jsonl", '{"loss": 1}\n', "line 1: field 'step': Field required"),
    ("arms/rag/steps.jsonl", '{"step": 1, "guard": [1]}\n', "line 1: field 'guard'"),
    ("arms/rag/steps.jsonl", '{"step": 1, "guard": {"warned_by": 3}}\n', "field 'guard.warned_by'"),
]


def deep(n: int) -> Any:
    value: Any = 1
    for _ in range(n):
        value = [value]
    return value


@pytest.mark.parametrize(("file", "damage", "problem"), DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_file_is_named_with_its_field_and_the_rest_is_shown(run, file, damage, problem):
    path = run / file
    if isinstance(damage, str) and path.suffix == ".jsonl" and path.exists():
        change_line(path, damage)
    elif isinstance(damage, str):
        path.write_text(damage)
    elif path.suffix == ".jsonl":
        change_line(path, damage)
    else:
        change(path, lambda d: result if isinstance(result := damage(d), dict) and "schema_version" in result else d)
    lines = [line for line in report_markdown(run).splitlines() if line.startswith("Could not be read")]
    assert any(file in line and problem in line for line in lines) if problem else not lines


def test_a_file_that_is_none_is_named_and_not_waited_for(run):
    for name in ("findings.json", "arms/rag/depth.json"):
        (run / name).unlink()
        os.mkfifo(run / name)
    (run / "before.json").unlink()
    (run / "before.json").symlink_to("/etc/passwd")
    text = report_markdown(run)
    assert "findings.json (is no readable" in text or "findings.json (this is a FIFO" in text
    assert "before.json" in text
    assert "root:" not in text


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ("[1]", "a list, not an object"),
        (lambda d: d.pop("verb"), "field 'verb': Field required"),
        (lambda d: d.update(argv=[1]), "field 'argv.0'"),
        (lambda d: d.update(status="fine"), "field 'status'"),
        (lambda d: d.update(topic="\ud800"), "field 'topic': half a character"),
        ("[" * 100_000, "nested more than 64 deep"),
    ],
)
def test_a_damaged_head_is_an_error_with_its_field(run, damage, problem):
    if isinstance(damage, str):
        (run / "run.json").write_text(damage)
    else:
        change(run / "run.json", lambda d: damage(d) and None)
    with pytest.raises(RunError, match=r"no readable run\.json") as caught:
        report(run)
    assert problem in caught.value.message


@pytest.mark.long
def test_a_page_writes_and_reads_nothing_outside_its_folder(run, tmp_path):
    """Finding 5: names of arms were paths of pictures, and folders were followed wherever they led."""
    secret = tmp_path / "secret"
    secret.mkdir()
    steps = '{"step": 1, "loss": 0.5, "guard": {"warned_by": ["SECRET"], "warnings": ["SECRET"]}}\n'
    (secret / "steps.jsonl").write_text(steps)
    (run / "arms/rag/steps.jsonl").write_text(steps.replace("SECRET", "own"))
    there = {path for path in tmp_path.rglob("*") if run not in path.parents}
    for place in (
        {"folder": "../secret"},
        {"folder": str(secret)},
        {"applied_in": "../secret"},
        {"folder": "arms/rag"},
    ):
        for name in ("../../ABOVE", f"{tmp_path}/ABSOLUTE", "x/../../../y", "a" * 400, "\x1b[2J"):
            change(run / "study.json", lambda d, arm={"name": name, **place}: d["arms"][0].update(arm))
            assert "SECRET" not in report(run, pictures=True).read_text(encoding="utf-8")
    assert {path for path in tmp_path.rglob("*") if run not in path.parents} == there
    assert all(path.parent == run / "pictures" for path in run.rglob("*.png"))
    assert len(list(run.rglob("*-training*.png"))) == 3  # an arm's curves where its folder is its own


def test_pictures_do_not_follow_a_link_out_of_the_folder(run, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (run / "pictures").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="not in that folder"):
        report(run, pictures=True)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_compared_run_is_shown_from_the_folder_of_the_comparison(tea, tmp_path):
    for name, liked in (("a", 0.4), ("b", 0.1)):
        opened = begin(tea, plan("rag", liked), folder=tmp_path / name)
        assert opened.arms
        change(tmp_path / name / "arms/rag/outcome.json", lambda d: None)
    folders = [tmp_path / name / "arms/rag" for name in "ab"]
    quiet = StudyDesign(load=load, benign_steps=0, placebo=False)
    with Run.start(tmp_path / "table", topic="tea", verb="compare", argv=["x"]) as run:
        compare_runs(load_applied_runs(folders), load_topic(str(tea)), load("base"), run, RunContext(), quiet)
    for folder in folders:
        (folder / "outcome.json").unlink()
    assert "applied in" in report_markdown(tmp_path / "table")
    assert "Could not be read" not in report_markdown(tmp_path / "table")
    (tmp_path / "table/arms/1-rag/outcome.json").unlink()
    assert "outside of this folder: it is not read" in report_markdown(tmp_path / "table")


def asked(forecast: dict[str, Any]) -> dict[str, Any]:
    """A pair that is asked again after training."""
    return next(p for p in forecast["pair_forecasts"] if (p["split"], p["role"]) == ("test", "target"))


@pytest.mark.parametrize(
    ("file", "damage", "problem"),
    [
        (
            "forecast.json",
            lambda d: asked(d).update(question=None),
            "question: a pair of the test split",
        ),
        ("forecast.json", lambda d: asked(d)["question"].update(wanted=""), "wanted"),
        ("forecast.json", lambda d: asked(d)["question"].update(turns=[["god", "x"]]), "turns.0.0"),
        ("forecast.json", lambda d: asked(d).update(p_correct=1e308), "p_correct"),
        ("forecast.json", lambda d: d.update(pair_forecasts=None), "field 'pair_forecasts'"),
        ("outcome.json", lambda d: d.update(guard_stop={"reasons": 1}), "field 'guard_stop.reasons'"),
        ("outcome.json", lambda d: d.update(base=[1]), "field 'base'"),
        ("outcome.json", lambda d: d.update(report=[["a"]]), "field 'report.0"),
    ],
)
def test_compare_names_the_file_and_the_field(trained, tmp_path, file, damage, problem):
    run = copied(trained, tmp_path)
    change(run / file, lambda d: damage(d) and None)
    with pytest.raises(RunError) as caught:
        compare(run, model=tiny_model())
    assert file in caught.value.message
    assert problem in caught.value.message


def test_a_run_names_no_topic_by_a_path(trained, tmp_path):
    first, second = (copied(trained, folder) for folder in (tmp_path / "a", tmp_path / "b") if not folder.mkdir())
    for run in (first, second):
        change(run / "outcome.json", lambda d: d["data"].update(name="../../tmp/x"))
    with pytest.raises(ConvictionError, match="learned from"):
        compare(first, second)
    for run in (first, second):
        change(run / "outcome.json", lambda d: d["base"].pop("id") and None)
    with pytest.raises(RunError, match=r"outcome\.json: field 'base\.id'"):
        compare(first, second)


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("before.json", "[1]", "a list, not an object"),
        ("depth.json", "{}", "schema version None"),
        ("config.json", "[1]", "a list, not an object"),
        ("config.json", "[" * 100_000, "nested more than 64 deep"),
        ("samples.jsonl", "null\n", "samples.jsonl is damaged:1: a NoneType"),
    ],
)
def test_a_study_that_goes_on_names_what_is_damaged(run, file, content, problem):
    write_kit(run.parent / "tea")
    change(run / "run.json", lambda d: {**d, "status": "failed"})
    (run / file).write_text(content)
    with pytest.raises(RunError) as caught:
        go_on(run)
    assert file in caught.value.message
    assert problem in caught.value.message


@pytest.mark.parametrize("file", ["outcome.json", "depth.json", "samples.jsonl"])
def test_a_damaged_arm_fails_and_takes_no_other_along(run, file):
    write_kit(run.parent / "tea")
    change(run / "run.json", lambda d: {**d, "status": "failed"})
    (run / "arms/rag" / file).write_text("[1]\n")
    rag, steer = sorted(go_on(run).arms, key=lambda arm: arm.name)
    assert (rag.failure.kind, steer.failure.kind) == ("RunError", "InputError")
    assert f"{file} is" in rag.failure.message
    assert "a list, not an object" in rag.failure.message


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        pytest.param(lambda p: p.unlink(), "it lacks 2 steps of 2", marks=pytest.mark.long),
        (lambda p: p.write_text(p.read_text(encoding="utf-8").split("\n")[0] + "\n"), "it lacks 1 step of 2"),
        (lambda p: p.write_text(p.read_text(encoding="utf-8")[:-9]), "it lacks 1 step of 2"),
        (lambda p: change_line(p, "null"), "line 1: a NoneType, not an object"),
        (lambda p: change_line(p, '{"step": "x"}'), "line 1: field 'step'"),
    ],
)
def test_steps_of_a_finished_run_that_are_gone_or_damaged_are_said(trained, tmp_path, damage, problem):
    """In `report`, `compare` and the same command again, as that a samples.jsonl was removed."""
    run = shutil.copytree(trained, tmp_path / "run")
    damage(run / "steps.jsonl")
    lines: list[str] = []
    ctx = RunContext(callbacks=Callbacks(log=lines.append))
    again = {"run": run, "forecast_first": True, "ctx": ctx, **QUIET}
    asked = {"topic": str(trained.parent / "tea"), "model": tiny_model(), "benign_steps": 0, "ctx": ctx}
    calls = [
        lambda: report(run, log=lines.append),
        lambda: compare(run, model=tiny_model(), ctx=ctx),
        lambda: apply("dpo", tiny_model(), str(trained.parent / "tea"), **again),
    ]
    if not (run / "steps.jsonl").exists():
        calls.append(lambda: compare(run, trained, run=tmp_path / "t", **asked))
    for call in calls:
        lines.clear()
        call()
        assert [line for line in lines if "steps.jsonl" in line and problem in line], lines
    assert f"steps.jsonl ({problem}" in report_markdown(run)


HOSTILE = [
    None,
    1,
    -1,
    True,
    "",
    [],
    {},
    [1],
    "\ud800",
    "../../x",
    1e308,
    5e-324,
    10**50,
    float("nan"),
    "a" * 9999,
    "\x1b",
]


@pytest.mark.long
def test_no_damage_is_a_traceback(run, trained, tmp_path):
    """Finding 8: of 73 damaged folders 30 were tracebacks in `report`."""
    chance = random.Random(0)
    trained_run = copied(trained, tmp_path / "t") if not (tmp_path / "t").mkdir() else trained
    files = [p for folder in (run, trained_run) for p in folder.rglob("*.json*") if p.is_file()]
    for path in files:
        good = path.read_bytes()
        for time in range(3):
            lines = good.decode().split("\n") if path.suffix == ".jsonl" else [good.decode()]
            at = chance.randrange(max(1, len(lines) - 1))
            lines[at] = json.dumps(chance.choice(HOSTILE) if time < 1 else mutated(json.loads(lines[at]), chance))
            path.write_text("\n".join(lines), encoding="utf-8")
            folder = run if run in path.parents else trained_run
            for read in (lambda one: _html(read_run(one), {}), report_markdown):
                with suppress(ConvictionError):
                    read(folder)
        path.write_bytes(good)


def mutated(value: Any, chance: random.Random) -> Any:
    """The value with one part of it, however deep, taken away or replaced by another."""
    if not isinstance(value, dict | list) or not value or chance.random() < 0.1:
        return chance.choice(HOSTILE)
    name = chance.choice(list(value)) if isinstance(value, dict) else chance.randrange(len(value))
    if chance.random() < 0.15:
        return [v for i, v in enumerate(value) if i != name] if isinstance(value, list) else {**value, "more": 1}
    value[name] = mutated(value[name], chance)
    return value
