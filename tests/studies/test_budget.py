"""A budget ends an arm between two steps of its training, and what was trained is kept."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from tea import YAML, tea_items

from conviction import load_model, load_topic
from conviction.config.plan import plan_intervention
from conviction.core.context import Budget, Callbacks, RunContext
from conviction.core.run import Run
from conviction.studies.context import StudyDesign
from conviction.studies.study import study
from conviction.studies.tuning_records import search_minutes


def steps_of(folder) -> list:
    """Without what a clock says."""
    steps = Run(folder, resumed=True).steps_if_sound()
    return [{name: value for name, value in step.items() if "second" not in name} for step in steps]


@pytest.mark.long
def test_a_budget_cuts_inside_an_arm_which_goes_on_with_more_time(write_topic, tiny_folder, tmp_path, monkeypatch):
    kit, model = load_topic(str(write_topic(yaml=YAML, items=tea_items(12)))), load_model(str(tiny_folder))
    clock, lines = SimpleNamespace(now=0.0), list[str]()
    monkeypatch.setattr("conviction.core.context.time.monotonic", lambda: clock.now)

    def on_step(record, _total):
        clock.now = 60.0 * record["step"]

    def attempt(folder, budget=None):
        plans = [plan_intervention("sft", {"rank": 2, "max_steps": 6, "batch_size": 2})]
        design = StudyDesign(load=load_model, benign_steps=0, placebo=False)
        ctx = RunContext(callbacks=Callbacks(log=lines.append, on_step=on_step), budget=budget)
        return study(kit, model, plans, Run(folder, resumed=True), ctx, design).arms[0]

    arm = attempt(tmp_path / "cut", Budget(180.0, started=0.0))
    assert (arm.judgement, arm.failure.kind) == (None, "BudgetSpent")
    assert [step["step"] for step in steps_of(tmp_path / "cut/arms/sft")] == [1, 2, 3]
    again = attempt(tmp_path / "cut")
    assert again.judgement is not None
    whole = attempt(tmp_path / "whole")
    assert steps_of(tmp_path / "cut/arms/sft") == steps_of(tmp_path / "whole/arms/sft")
    assert again.judgement.properties == whole.judgement.properties


@pytest.mark.long
def test_an_arm_that_was_trained_is_judged_although_the_time_is_over(write_topic, tiny_folder, tmp_path, monkeypatch):
    kit, model = load_topic(str(write_topic(yaml=YAML, items=tea_items(12)))), load_model(str(tiny_folder))
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("conviction.core.context.time.monotonic", lambda: clock.now)

    def on_step(record, total):
        clock.now = 1e9 if record["step"] == total else 0.0

    plans = [plan_intervention("sft", {"rank": 2, "max_steps": 2}), plan_intervention("dpo", {"rank": 2})]
    ctx = RunContext(callbacks=Callbacks(on_step=on_step), budget=Budget(180.0, started=0.0))
    design = StudyDesign(load=load_model, benign_steps=0, placebo=True)
    first, second = study(kit, model, plans, Run(tmp_path), ctx, design).arms
    assert first.judgement is not None
    assert (second.judgement, second.failure.kind) == (None, "BudgetSpent")


def test_a_search_has_a_share_of_the_budget():
    assert search_minutes(3.0, Budget(600)) == 3.0
    assert search_minutes("auto", Budget(600)) == 4.0
    assert search_minutes("auto") == 10.0
