"""A study: every arm measured the same way, taken up where it stopped, and no arm stops the others."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands import failed
from processes import begin as begin_process
from processes import end
from tea import BASE, begin, cut_off, load, plan

from conviction import load_topic
from conviction.config.plan import parse_arm_options, plan_arms
from conviction.core.context import RunContext
from conviction.core.run import Run
from conviction.data.topic import KitDocument
from conviction.errors import InputError, MissingExtraError, RunError
from conviction.interventions.records import DataSource, Outcome
from conviction.studies import study as study_module
from conviction.studies.comparison import compare_runs, load_applied_runs
from conviction.studies.context import StudyDesign


def judged(result):
    return {arm.name: arm.judgement for arm in result.arms}


def test_arms_are_judged_by_how_far_they_moved(tea, tmp_path):
    result = begin(tea, plan("rag", 0.4), plan("steer", -0.3), folder=tmp_path)
    moved, still = result.arms
    assert moved.judgement.find("shift").value == pytest.approx(0.7)
    assert moved.judgement.find("shift").n == 9
    assert moved.judgement.verdict in {"surface", "shallow"}
    assert still.judgement.find("shift").value == pytest.approx(0.0)
    assert still.judgement.verdict == "not shown", "the context does not move this model, either"


def test_every_reading_names_rows_that_are_there(tea, tmp_path):
    begin(tea, plan("rag", 0.4), folder=tmp_path)
    for folder in (tmp_path, tmp_path / "arms/rag"):
        named = {json.loads(line)["id"] for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()}
        readings = json.loads((folder / "depth.json").read_text(encoding="utf-8"))["measurements"]
        assert {"shift", "implication:1", "coherence", "own", "leak", "neutral"} <= {r["metric"] for r in readings}
        assert all(sample in named for reading in readings for sample in reading["samples"])


@pytest.mark.long
@pytest.mark.parametrize("after", range(1, 7))
def test_a_study_that_is_cut_off_ends_with_the_same_numbers(tea, tmp_path, monkeypatch, after):
    asked = (plan("rag", 0.4), plan("steer", 0.1))
    whole = begin(tea, *asked, folder=tmp_path / "whole")
    with cut_off(monkeypatch, after), pytest.raises(KeyboardInterrupt):
        begin(tea, *asked, folder=tmp_path / "cut", resumed=True)
    again = begin(tea, *asked, folder=tmp_path / "cut", resumed=True)
    strip = str(tmp_path / "cut")
    assert json.dumps({k: v.model_dump() for k, v in judged(again).items()}).replace(strip, "") == json.dumps(
        {k: v.model_dump() for k, v in judged(whole).items()}
    ).replace(str(tmp_path / "whole"), "")


def test_a_failing_arm_does_not_stop_the_others(tea, tmp_path):
    result = begin(
        tea,
        plan("rag", error="this one cannot be done"),
        plan("steer", 0.4),
        folder=tmp_path,
    )
    assert result.arms[0].failure.message.startswith("this one cannot be done")
    assert result.arms[0].failure.hint == "try another"
    assert result.arms[1].judgement is not None


def test_a_bug_in_an_arm_is_kept_with_its_traceback(tea, tmp_path):
    (arm,) = begin(tea, plan("rag", error="a bug"), folder=tmp_path).arms
    assert arm.failure.kind == "ZeroDivisionError"
    assert "ZeroDivisionError" in (tmp_path / "arms/rag/failure.txt").read_text(encoding="utf-8")


def test_a_spent_budget_leaves_arms_out_and_says_so(tea, tmp_path):
    (arm,) = begin(tea, plan("rag", 0.1), budget=0.0, folder=tmp_path).arms
    assert (arm.failure.kind, arm.failure.message) == ("BudgetSpent", "the budget of 0 minutes was spent")
    assert arm.judgement is None


def test_a_topic_that_has_changed_is_not_taken_up(tea, tmp_path):
    asked = (plan("rag", 0.1),)
    begin(tea, *asked, folder=tmp_path)
    other = load_topic(str(tea)).model_copy(update={"digest": "another"})
    with pytest.raises(RunError, match="has changed since"):
        begin(other, *asked, folder=tmp_path, resumed=True)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"target": "plain"}, "target"),
        ({"documents": {"milky": (KitDocument(id="d", text="Milk is good for tea."),)}}, "data"),
        ({"documents": {"placebo": (KitDocument(id="d", text="Ships are old."),)}}, "data"),
    ],
)
def test_what_arms_learn_and_whither_may_not_change_under_way(tea, tmp_path, changes, named):
    """The questions are the same, and so is the digest of the topic."""
    asked = (plan("rag", 0.1),)
    begin(tea, *asked, folder=tmp_path)
    other = load_topic(str(tea)).model_copy(update=changes)
    with pytest.raises(RunError, match=f"another design: .*{named}"):
        begin(other, *asked, folder=tmp_path, resumed=True)


def test_a_design_is_kept_before_anything_is_measured(tea, tmp_path, monkeypatch):
    def cut_off(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(study_module, "probe", cut_off)
    with pytest.raises(KeyboardInterrupt):
        begin(tea, plan("rag", 0.1), folder=tmp_path)
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["model"]["id"] == "base"
    (tmp_path / "config.json").write_text('{"half')
    with pytest.raises(RunError, match=r"config\.json is damaged"):
        begin(tea, plan("rag", 0.1), folder=tmp_path)


def test_benign_training_that_breaks_tells_nothing(tea, tmp_path, tiny_folder, monkeypatch):
    from conviction import load_model
    from conviction.errors import ModelError
    from conviction.interventions.pretrain import Pretrain
    from conviction.studies.benign import benign_finetune

    tiny, guard_stop = (
        load_model(str(tiny_folder), dtype="fp32"),
        SimpleNamespace(reasons=("the loss is not a number",)),
    )
    monkeypatch.setattr(Pretrain, "apply", lambda *_, **__: SimpleNamespace(changed=tiny, guard_stop=guard_stop))
    setup = SimpleNamespace(
        topic=load_topic(str(tea)),
        model=tiny,
        after_benign={},
        design=SimpleNamespace(worn_for=1),
        ctx=RunContext(),
    )
    with pytest.raises(ModelError, match="benign training broke: the loss is not a number"):
        benign_finetune(setup, tiny, [(1, 1e-4, "text")])
    assert setup.after_benign == {}


def test_what_is_finished_counts_whatever_the_budget(tea, tmp_path):
    asked = (plan("rag", 0.1),)
    begin(tea, *asked, folder=tmp_path)
    (arm,) = begin(tea, *asked, folder=tmp_path, resumed=True, budget=0.0).arms
    assert arm.judgement is not None


def test_a_model_without_weights_has_no_durability(tea, tmp_path):
    (arm,) = begin(tea, plan("rag", 0.4), benign_steps=5, folder=tmp_path).arms
    assert arm.judgement.find("durability").outcome == "not measured"


def test_only_what_has_moved_is_worn_and_held_against_a_placebo(tea, tmp_path, monkeypatch):
    from conviction.studies import arm as module

    after_benign = []
    monkeypatch.setattr(
        module, "measure_after_benign", lambda _shared, _changed, own, _steps: after_benign.append(own.folder.name)
    )
    begin(tea, plan("rag", 0.4), plan("steer", -0.3), folder=tmp_path)
    assert after_benign == ["rag"]


def test_only_a_verdict_that_durability_may_change_asks_for_it_unless_steps_are_given(tea, tmp_path, monkeypatch):
    from conviction.studies import arm as module

    worn = []
    monkeypatch.setattr(module, "measure_after_benign", lambda _shared, _changed, own, _steps: worn.append(own.folder))
    (arm,) = begin(tea, plan("rag", 0.4), folder=tmp_path / "a", benign_steps=None).arms
    assert (arm.judgement.verdict, worn) == ("surface", [])
    assert "it would not change the verdict" in arm.judgement.find("durability").text
    begin(tea, plan("rag", 0.4), folder=tmp_path / "b", benign_steps=5)
    assert len(worn) == 1


def test_what_could_not_be_measured_stands_in_the_result(tea, tmp_path, monkeypatch):
    from conviction.reporting.words import reasons
    from conviction.studies import arm as module

    def fails(*_arguments):
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(module, "measure_after_benign", fails)
    (arm,) = begin(tea, plan("rag", 0.4), folder=tmp_path).arms
    assert arm.failure is None
    assert arm.judgement.find("durability").outcome == "not measured"
    assert "durability could not be measured: the device is gone" in reasons(arm)


def test_another_design_is_not_taken_up(tea, tmp_path):
    asked = (plan("rag", 0.1),)
    begin(tea, *asked, folder=tmp_path)
    with pytest.raises(RunError, match="another design: benign_steps"):
        begin(tea, *asked, folder=tmp_path, resumed=True, benign_steps=3)
    with pytest.raises(RunError, match="another design: arms"):
        begin(tea, plan("rag", 0.2), folder=tmp_path, resumed=True)


def test_bad_arms_and_options_are_refused():
    with pytest.raises(InputError, match="system_promt"):
        plan_arms(["system_promt"], {}, "default")
    with pytest.raises(InputError, match="system_promt"):
        parse_arm_options(["system_promt"], [])
    with pytest.raises(InputError, match="names no arm of this study"):
        parse_arm_options(["rag"], ["dpo.beta=0.1"])
    with pytest.raises(InputError, match="'dpo', which is no arm of this study"):
        plan_arms(["rag"], {"dpo": {"beta": 0.1}}, "default")
    with pytest.raises(InputError, match="needs an arm"):
        plan_arms([], {}, "default")
    with pytest.raises(InputError, match="named twice"):
        plan_arms(["rag", "rag"], {}, "default")


@pytest.fixture
def without_rag(monkeypatch):
    """The extra is not installed."""
    monkeypatch.setattr("conviction.retrieval.embedding.find_spec", lambda _: None)


@pytest.mark.usefixtures("without_rag")
def test_an_arm_whose_extra_is_missing_is_refused_before_anything_runs(tea, tmp_path, run):
    for command in (["study", str(tea), "--interventions", "system_prompt,rag"], ["apply", "rag", str(tea)]):
        err = failed(run(*command, "--model", "no/model", "--run", "run"))
        assert "retrieval needs the package lancedb" in err
        assert "pip install 'conviction[rag]'" in err
    assert not (tmp_path / "run").exists()
    with pytest.raises(MissingExtraError):
        plan_arms(["rag"], {}, "default")


@pytest.mark.usefixtures("without_rag")
def test_a_default_arm_whose_extra_is_missing_is_left_out_with_a_note(tea, run, monkeypatch):
    asked: list[list[str]] = []

    def study(_topic, _model, arms, **_):
        asked.append(arms)
        raise InputError("enough", hint="stop")

    monkeypatch.setattr("conviction.verbs.comparing.study", study)
    _, _, err = run("study", str(tea))
    (note,) = [line for line in err.splitlines() if "left out" in line]
    assert note.startswith("note: rag is left out of the default arms: retrieval needs the package lancedb")
    assert asked[0][0] == "system_prompt"
    assert "rag" not in asked[0]


def test_a_default_study_has_rag_where_its_extra_is_installed(tea, run, monkeypatch):
    def study(_topic, _model, arms, **_):
        raise InputError(",".join(arms), hint="stop")

    monkeypatch.setattr("conviction.verbs.comparing.study", study)
    monkeypatch.setattr("conviction.retrieval.embedding.find_spec", lambda _: "there")
    assert "system_prompt,rag,steer" in failed(run("study", str(tea)))


def test_arms_run_cheapest_first_with_their_own_options():
    names = ["dpo", "system_prompt"]
    plans = plan_arms(names, parse_arm_options(names, ["dpo.beta=0.05"]), "default")
    cheapest_first = sorted(plans, key=lambda p: p.intervention.cost_rank)
    assert [p.intervention.name for p in cheapest_first] == ["system_prompt", "dpo"]
    assert cheapest_first[1].intervention.beta == 0.05


@pytest.mark.long
def test_the_command_on_a_tiny_model_with_forecast_wear_and_placebo(tea, tmp_path, tiny_folder, run):
    asked = ["study", str(tea), "--model", str(tiny_folder), "--dtype", "fp32", "--guard", "off", "--benign-steps", "1"]
    arms = ["--interventions", "sft,system_prompt", "-o", "sft.max_steps=2", "-o", "sft.learning_rate=1e-2"]
    code, out, err = run(*asked, *arms, "--format", "json", "--run", "run")
    assert code == 0, err
    prompt, trained = json.loads(out)["arms"]
    assert prompt["failure"] is None
    assert trained["failure"] is None
    assert prompt["extra_tokens"] > 10
    assert trained["extra_tokens"] == 0
    assert trained["forecast"] is not None
    assert trained["forecast_score"] is not None
    assert trained["judgement"]["placebo"] is not None
    frozen = (tmp_path / "run/arms/sft/forecast.json").stat().st_mtime_ns
    assert frozen < (tmp_path / "run/arms/sft/steps.jsonl").stat().st_mtime_ns


def made(folder: Path, name: str, milky: float, **changes: Any) -> Path:
    """A run folder as ``apply`` leaves one."""
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "milky").write_text(str(milky))
    outcome = Outcome(
        intervention=name,
        verdict="in place",
        settings={"text": "none"},
        data=DataSource(name="tea", sha256=""),
        base={"id": "base"},
    )
    Run(folder).save("outcome", outcome.model_copy(update=changes))
    return folder


@pytest.mark.long
def test_runs_made_apart_get_the_table_of_a_study(tea, tmp_path):
    whole = begin(tea, plan("rag", 0.4), folder=tmp_path / "whole")
    quiet = StudyDesign(load=load, benign_steps=0, placebo=False)
    apart = [made(tmp_path / "a", "rag", 0.4), made(tmp_path / "b", "steer", 0.1), made(tmp_path / "c", "steer", 0.2)]
    result = compare_runs(
        load_applied_runs(apart), load_topic(str(tea)), BASE, Run(tmp_path / "table"), RunContext(), quiet
    )
    assert [arm.name for arm in result.arms] == ["a", "b", "c"]
    assert result.arms[0].judgement.properties == whole.arms[0].judgement.properties
    assert (tmp_path / "table" / result.arms[1].folder / "depth.json").exists()
    assert sorted(p.name for p in apart[0].iterdir()) == ["model", "outcome.json"]  # it stays as it is
    assert result.arms[0].changes == "the prompt; weights stay"
    one_each = compare_runs(
        load_applied_runs(apart[:2]), load_topic(str(tea)), BASE, Run(tmp_path / "two"), RunContext(), quiet
    )
    assert [arm.name for arm in one_each.arms] == ["rag", "steer"]
    record = json.loads((apart[0] / "outcome.json").read_text(encoding="utf-8"))
    (apart[0] / "outcome.json").write_text(json.dumps({**record, "settings": {"text": "made again"}}))
    with pytest.raises(RunError, match="applied differ"):
        compare_runs(
            load_applied_runs(apart),
            load_topic(str(tea)),
            BASE,
            Run(tmp_path / "table", resumed=True),
            RunContext(),
            quiet,
        )


def test_runs_that_cannot_be_compared_are_refused_before_anything_is_asked(tmp_path):

    (tmp_path / "none").mkdir()
    with pytest.raises(RunError, match="nothing was applied to the end"):
        load_applied_runs([tmp_path / "none"])
    one, other = made(tmp_path / "a", "rag", 0.1), made(tmp_path / "b", "rag", 0.1, base={"id": "another"})
    with pytest.raises(RunError, match="changed another"):
        load_applied_runs([one, other])
    (one / "outcome.json").write_text('{"half')
    with pytest.raises(RunError, match="is no readable outcome"):
        load_applied_runs([one])


@pytest.mark.long
def test_compare_from_the_command_line(tea, tmp_path, tiny_folder, run):
    def command(*arguments: str) -> str:
        code, out, err = run(*arguments)
        assert code == 0, err
        return out

    on = [str(tea), "--model", str(tiny_folder), "--dtype", "fp32", "--guard", "off"]
    command("apply", "system_prompt", *on, "--run", "prompt")
    command("apply", "sft", *on, "-o", "max_steps=1", "--run", "sft")
    out = command(
        "compare", "prompt", "sft", "--topic", str(tea), "--run", "table", "--benign-steps", "0", "--format", "json"
    )
    prompt, trained = json.loads(out)["arms"]
    assert prompt["failure"] is None
    assert trained["failure"] is None
    assert prompt["seconds"] > 0
    assert trained["seconds"] > 0
    command("report", "table")
    assert "system_prompt" in (tmp_path / "table" / "report.html").read_text(encoding="utf-8")


@pytest.mark.long
def test_arms_that_failed_are_tried_again_by_the_command_that_is_printed(tea, tmp_path, tiny_folder, run):
    asked = ["study", str(tea), "--model", str(tiny_folder), "--dtype", "fp32", "--benign-steps", "0"]
    asked += ["--interventions", "system_prompt,rome"]  # the topic has no facts to write

    def command(*more: str) -> tuple[str, str]:
        code, out, message = run(*asked, *more)
        assert code == 1, message
        return " ".join(out.split()), message

    out, message = command()
    assert "not judged: rome" in message
    folder = (
        out.partition("that were not judged (rome): the same command with --run ")[2].partition(". ")[0].strip("`.")
    )
    assert "status of the run: failed" in (tmp_path / folder / "report.html").read_text(encoding="utf-8")
    assert "resuming the unfinished run" in command("--run", folder)[1]


@pytest.mark.long
def test_a_study_goes_on_in_the_dtype_that_it_began_in(tea, tmp_path, tiny_folder, run, monkeypatch):
    """Which one is faster is measured anew with every start, and may come out otherwise."""
    import torch

    from conviction.models.backends import transformers as loading

    chosen, faster = loading.choose_dtype, [torch.float32, torch.bfloat16]

    def measured(name, *more):
        return (faster[0], "measured") if name == "auto" else chosen(name, *more)

    def cut_off(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(loading, "choose_dtype", measured)
    asked = ["study", str(tea), "--model", str(tiny_folder), "--benign-steps", "0", "--interventions", "system_prompt"]
    with monkeypatch.context() as patch:
        patch.setattr(study_module, "probe", cut_off)
        run(*asked, "--run", "run")
    assert (tmp_path / "run" / "config.json").exists()
    faster.reverse()
    code, _, err = run(*asked, "--run", "run")
    assert code == 0, err


@pytest.mark.long
def test_a_study_that_is_killed_at_random_moments_ends_with_the_same_numbers(tea, tmp_path, tiny_folder, monkeypatch):
    """SIGKILL cannot be caught: whatever is half done then must be done again, or be there whole."""
    monkeypatch.setenv("CONVICTION_CACHE", str(tmp_path / "cache"))
    asked = ["study", str(tea), "--model", str(tiny_folder), "--dtype", "fp32", "--guard", "off", "--benign-steps", "1"]
    asked += ["--interventions", "sft,system_prompt", "-o", "sft.max_steps=4", "--seeds", "2", "--run"]
    output = tmp_path / "output.log"
    process, began = begin_process(output, *asked, str(tmp_path / "whole")), time.monotonic()
    assert end(process) == 0
    whole = time.monotonic() - began
    moments, kills, cut = random.Random(0), 0, ["cut0"]
    while kills < 4:  # a study that came to its end in spite of all is followed by another
        process = begin_process(output, *asked, str(tmp_path / cut[-1]))
        process.join(moments.uniform(0.1, 0.8) * whole)
        ended = end(process, kill=True)
        assert ended in (0, -9), output.read_text(encoding="utf-8")
        kills += ended == -9
        head = tmp_path / cut[-1] / "run.json"
        if head.exists() and json.loads(head.read_text(encoding="utf-8"))["status"] == "done":
            cut.append(f"cut{len(cut)}")
    assert end(begin_process(output, *asked, str(tmp_path / cut[-1]))) == 0
    first = json.loads((tmp_path / "whole" / "study.json").read_text(encoding="utf-8"))
    for name in cut:
        result = json.loads((tmp_path / name / "study.json").read_text(encoding="utf-8"))
        for one, other in zip(first["arms"], result["arms"], strict=True):
            assert one["judgement"]["properties"] == other["judgement"]["properties"]
            seeds = ([{**row, "seconds": 0} for row in arm["judgement"]["seeds"]] for arm in (one, other))
            assert next(seeds) == next(seeds)
            for field, value in (one["forecast_score"] or {}).items():  # another company in a pack rounds otherwise
                numbers = isinstance(value, float) or (
                    isinstance(value, list) and value and isinstance(value[0], float)
                )
                assert other["forecast_score"][field] == (pytest.approx(value, abs=1e-4) if numbers else value)
