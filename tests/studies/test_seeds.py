"""A training that is repeated with other seeds: an interval over both, and no seed that is averaged away."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from tea import BASE, Move, cut_off, liking, plan

from conviction import Study, load_topic
from conviction import study as run_study
from conviction.config.plan import Plan
from conviction.core.context import Budget, Callbacks, RunContext
from conviction.core.crossed import crossed_mean
from conviction.core.run import Run
from conviction.errors import BudgetSpent, InputError, RunError
from conviction.interventions.records import DataSource, Outcome
from conviction.models.backends.scripted import ScriptedModel
from conviction.probing.depth_records import Measurements
from conviction.probing.paired import differences
from conviction.reporting.words import cells, reasons, sentence
from conviction.studies.context import StudyDesign
from conviction.studies.study import study
from conviction.training.guard import Guard, GuardStop

PLACEBO_SHIFT = 0.05
applied: list[str] = []
"""Name, seed and data of what was trained, in this test."""


@pytest.fixture(autouse=True)
def _nothing_applied() -> None:
    applied.clear()


def changed(name: str, milky: float, broken: bool) -> ScriptedModel:
    """Likes milk by so much; one that is broken cannot say what the other side holds."""
    inner = liking(milky)

    def likes(conversation, answer):
        asked = conversation[-1].content if conversation else ""
        if broken and "hold this view: no milk" in asked:
            return -3.0 if answer.startswith("Plain") else -2.0
        return inner(conversation, answer)

    return ScriptedModel(id=name, likes=likes)


@dataclass(frozen=True)
class Train:
    """A training that ends, with each seed, with a liking of its own. seconds: that it seems to have taken."""

    name: str
    likings: tuple[float, ...] = (0.4, 0.5, 0.6)
    broken: tuple[int, ...] = ()
    fails: tuple[int, ...] = ()
    stopped: tuple[int, ...] = ()
    cut: tuple[int, ...] = ()
    seconds: float = 1.0
    seed: int = 0
    changes: ClassVar[str] = "nothing that is real"
    trains: ClassVar[bool] = True
    forecastable: ClassVar[bool] = False
    cost_rank: ClassVar[int] = 0
    placebo: ClassVar[str] = "pairs"
    search: ClassVar[dict[str, tuple[object, ...]]] = {}

    def apply(self, model, data, ctx):
        applied.append(f"{self.name} {self.seed} {data.name}")
        if self.seed in self.fails:
            raise InputError("no memory for this one", hint="take another")
        if self.seed in self.cut:
            raise BudgetSpent("the budget of 9 minutes was spent", hint="give a longer --budget")
        milky, broken = self.likings[self.seed], self.seed in self.broken
        if data.name.endswith("placebo"):
            milky, broken = -0.3 + PLACEBO_SHIFT * (1 + self.seed), False
        if ctx.run is not None:
            ctx.run.model_path.mkdir(parents=True, exist_ok=True)
            (ctx.run.model_path / "is.json").write_text(json.dumps([milky, broken]))
        stop = GuardStop(step=3, restored_step=2, reasons=("facts lost 0.3",)) if self.seed in self.stopped else None
        return Outcome(
            intervention=self.name,
            verdict="healthy to the end",
            settings={},
            data=DataSource(name=data.name, sha256=data.digest),
            base=model.describe(),
            guard_stop=stop,
            seconds=self.seconds,
            model=changed("trained", milky, broken),
        )


def load(name: str) -> ScriptedModel:
    place = Path(name) / "is.json"
    if place.exists():
        return changed("trained", *json.loads(place.read_text(encoding="utf-8")))
    milky = Path(name) / "milky"
    return ScriptedModel(id="moved", likes=liking(float(milky.read_text(encoding="utf-8")))) if milky.exists() else BASE


def arm(name: str = "sft", **fields: Any) -> Plan:
    return Plan(intervention=Train(name, **fields), guard=Guard())


def begin(tea, *arms, folder, seeds=3, budget=None, placebo=False, log=lambda _: None):
    ctx = RunContext(budget=None if budget is None else Budget(budget), callbacks=Callbacks(log=log))
    design = StudyDesign(load=load, benign_steps=0, placebo=placebo, seeds=seeds)
    return study(load_topic(str(tea)), BASE, arms, Run(folder, resumed=True), ctx, design)


def test_every_seed_is_a_row_and_the_interval_is_over_propositions_and_seeds(tea, tmp_path):
    (result,) = begin(tea, arm(), folder=tmp_path).arms
    rows, shift = result.judgement.seeds, result.judgement.find("shift")
    assert [row.folder for row in rows] == ["arms/sft", "arms/sft/seeds/1", "arms/sft/seeds/2"]
    assert [row.shift_nats for row in rows] == pytest.approx([0.7, 0.8, 0.9])
    base = Run(tmp_path).load("depth", Measurements)
    of_seeds = [Run(tmp_path / row.folder, resumed=True).load("depth", Measurements) for row in rows]
    cells = np.stack([differences(base, one, "shift") for one in of_seeds], axis=1)
    expected = crossed_mean(cells).interval
    assert (shift.value, shift.low, shift.high) == pytest.approx((expected.mean, expected.low, expected.high))
    assert (shift.n, shift.seeds) == (9, 3)
    assert shift.high - shift.low > 5 * (rows[0].high - rows[0].low), "seeds differ by more than propositions here"
    assert "(3 seeds: +0.700 to +0.900)" in shift.text
    assert "3 seeds, nats per token: +0.70 (seed 0), +0.80 (seed 1), +0.90 (seed 2); beyond shift" in str(
        reasons(result)
    )


def test_of_a_further_seed_the_shift_and_what_may_be_harmed_are_read(tea, tmp_path):
    begin(tea, arm(), folder=tmp_path)
    first, other = (Run(tmp_path / "arms/sft" / place, resumed=True).load("depth", Measurements)
                    for place in (".", "seeds/1"))  # fmt: skip
    assert {"shift", "neighbour", "own", "neutral", "pluralism:plain"} <= set(other.names(""))
    assert set(first.names("")) - set(other.names("")) >= {"coherence", "unchallenged"}


def test_seeds_that_broke_are_never_averaged_away(tea, tmp_path):
    result = begin(tea, arm(broken=(1, 2)), folder=tmp_path)
    judgement = result.arms[0].judgement
    assert judgement.verdict == "broken"
    assert judgement.words == "broken in 2 of 3 seeds"
    assert judgement.reason.startswith(
        "2 of 3 seeds broke the model: seed 1: it can say what the side plain holds for 0"
    )
    assert judgement.reason.endswith("no harm shown by the others: seed 0 moved +0.700 nats per token")
    assert (judgement.kept.kept, judgement.kept.of) == (0, 9), "of the worst seed"
    assert cells(result.arms[0])[1] == "broken 2/3"
    assert "pluralism:plain" in cells(result.arms[0]), "harm is that of the worst seed"
    assert judgement.find("pluralism:plain").text.endswith("(9 lost, 0 won), with the worst of 3 seeds")
    assert reasons(result.arms[0])[0].startswith("broken: 2 of 3 seeds broke the model")
    lost = "sft moved it by +0.80 and lost 9 of 9 answers that the untouched model has right."
    assert sentence(result) == f"sft did harm in 2 of 3 seeds. {lost}"
    assert "+0.80 (seed 1, broken)" in str(reasons(result.arms[0]))


def test_a_first_seed_that_broke_is_one_of_them(tea, tmp_path):
    (result,) = begin(tea, arm(broken=(0,)), folder=tmp_path).arms
    assert result.judgement.words == "broken in 1 of 3 seeds"
    assert "seed 1 moved +0.800 nats per token, seed 2 moved +0.900" in result.judgement.reason


def test_seeds_that_differ_too_much_show_no_shift(tea, tmp_path):
    """Each of them alone does: the interval of one seed says nothing of the next."""
    (alone,) = begin(tea, arm(likings=(0.4,)), folder=tmp_path / "one", seeds=1).arms
    assert alone.judgement.find("shift").outcome == "yes"
    (result,) = begin(tea, arm(likings=(0.4, -0.29, -0.2)), folder=tmp_path / "three").arms
    assert result.judgement.verdict == "not shown"
    assert result.judgement.find("shift").low < 0
    assert result.judgement.find("shift").value > 0.2


def test_all_second_seeds_come_before_any_third(tea, tmp_path):
    begin(tea, arm("sft"), arm("dpo"), folder=tmp_path)
    assert applied == [f"{name} {seed} tea" for seed in range(3) for name in ("sft", "dpo")]


def test_seeds_follow_the_one_that_was_given(tea, tmp_path):
    (result,) = begin(tea, arm(likings=(0.0, 0.0, 0.4, 0.5), seed=2), folder=tmp_path, seeds=2).arms
    assert [row.seed for row in result.judgement.seeds] == [2, 3]


def test_without_a_budget_one_seed_is_trained_and_that_is_noted(tea, tmp_path):
    result = begin(tea, arm(), folder=tmp_path, seeds=None)
    assert len(applied) == 1
    assert result.arms[0].judgement.seeds == ()
    assert any(line.startswith("one seed was trained: what another would do") for line in reasons(result.arms[0]))
    assert result.unfinished == []


def test_seeds_that_are_there_count_whatever_the_budget(tea, tmp_path):
    begin(tea, arm(cut=(2,)), folder=tmp_path, seeds=None, budget=1e6)
    (result,) = begin(tea, arm(cut=(2,)), folder=tmp_path, seeds=None).arms
    assert [row.seed for row in result.judgement.seeds] == [0, 1]
    assert not any("one seed" in line for line in reasons(result))


@pytest.mark.parametrize(("budget", "seeds"), [(1e6, 3), (500.0, 1)])
def test_within_a_budget_three_seeds_are_trained_where_they_fit(tea, tmp_path, budget, seeds):
    result = begin(tea, arm(seconds=1000.0), folder=tmp_path, seeds=None, budget=budget)
    assert len(applied) == seeds
    assert (len(result.arms[0].judgement.seeds) or 1) == seeds
    short = any(
        "1 of 3 seeds: another takes about 1000 s, longer than the budget holds" in n for n in result.arms[0].notes
    )
    assert short == (seeds == 1)
    assert result.unfinished == [], "nobody asked for three"


def test_seeds_that_were_asked_for_and_left_out_are_tried_again(tea, tmp_path):
    result = begin(tea, arm(seconds=1000.0), folder=tmp_path, budget=500.0)
    assert result.arms[0].judgement is not None
    assert result.unfinished == ["2 seeds of sft"]
    again = begin(tea, arm(seconds=1000.0), folder=tmp_path)
    assert again.unfinished == []
    assert applied == ["sft 0 tea", "sft 1 tea", "sft 2 tea"]


def test_a_folder_that_lacks_seeds_that_were_asked_for_is_not_finished(tea, tmp_path):
    def once_more(**budget: Any) -> Study:
        one = Train("sft", seconds=1000.0)
        return run_study(
            tea, BASE, [one], seeds=2, placebo=False, benign_steps=0, load=load, run=tmp_path / "r", **budget
        )

    assert once_more(budget_minutes=5).unfinished == ["1 seed of sft"]
    assert Run(tmp_path / "r").head["status"] == "failed"
    assert once_more().unfinished == []
    assert Run(tmp_path / "r").head["status"] == "done"
    assert applied == ["sft 0 tea", "sft 1 tea"]


def test_a_seed_that_the_budget_ended_leaves_the_study_as_it_was(tea, tmp_path):
    whole = begin(tea, arm(), folder=tmp_path / "one", seeds=1)
    result = begin(tea, arm(cut=(1,)), folder=tmp_path / "cut", budget=1e6)
    assert result.arms[0].judgement == whole.arms[0].judgement
    assert result.arms[0].failure is None
    assert "1 of 3 seeds: the budget of 9 minutes was spent" in result.arms[0].notes
    assert result.unfinished == ["2 seeds of sft"]
    assert begin(tea, arm(cut=(1,)), folder=tmp_path / "any", seeds=None, budget=1e6).unfinished == []


def test_a_seed_that_fails_is_a_row_and_the_others_count(tea, tmp_path):
    result = begin(tea, arm(fails=(1,)), folder=tmp_path)
    judgement = result.arms[0].judgement
    assert [row.failure is None for row in judgement.seeds] == [True, False, True]
    assert judgement.find("shift").value == pytest.approx(0.8)
    assert judgement.find("shift").seeds == 2
    assert "seed 1 failed: no memory for this one" in str(reasons(result.arms[0]))
    assert result.unfinished == ["1 seed of sft"]


def test_a_seed_that_the_guard_stopped_is_named(tea, tmp_path):
    (result,) = begin(tea, arm(stopped=(2,)), folder=tmp_path).arms
    assert result.guard_stop is None
    assert "facts lost 0.3" in (result.judgement.seeds[2].guard_stop or "")
    assert "+0.90 (seed 2, stopped by the guard)" in str(reasons(result))


def test_the_placebo_has_the_seeds_of_the_arm(tea, tmp_path):
    (result,) = begin(tea, arm(), folder=tmp_path, placebo=True).arms
    assert [line for line in applied if line.endswith("placebo")] == [f"sft {seed} tea-placebo" for seed in range(3)]
    beyond = [0.7 - PLACEBO_SHIFT, 0.8 - 2 * PLACEBO_SHIFT, 0.9 - 3 * PLACEBO_SHIFT]
    assert [row.shift_nats for row in result.judgement.seeds] == pytest.approx(beyond)
    assert result.judgement.find("shift").value == pytest.approx(np.mean(beyond))


def test_a_seed_without_a_placebo_of_its_own_gets_the_mean_of_the_others(tea, tmp_path):
    """The guard stopped its training: that of a placebo would be longer."""
    (result,) = begin(tea, arm(stopped=(1,)), folder=tmp_path, placebo=True).arms
    beyond = [0.7 - PLACEBO_SHIFT, 0.8 - 2 * PLACEBO_SHIFT, 0.9 - 3 * PLACEBO_SHIFT]
    assert result.judgement.find("shift").value == pytest.approx(np.mean(beyond))
    assert result.judgement.seeds[1].shift_nats == pytest.approx(beyond[1])
    assert any("the placebo of seed 1 could not be measured" in note for note in result.notes)


def test_what_does_not_train_is_applied_once_and_says_so(tea, tmp_path):
    still, trained = begin(tea, plan("rag", 0.4), arm("sft"), folder=tmp_path).arms
    assert still.judgement.seeds == ()
    assert "applied once: nothing in it is drawn by a seed" in still.notes
    assert len(trained.judgement.seeds) == 3
    assert isinstance(plan("rag").intervention, Move)


@pytest.mark.long
@pytest.mark.parametrize("after", [9, 11, 14, 17, 20])
def test_a_study_that_is_cut_off_between_seeds_ends_with_the_same_bytes(tea, tmp_path, monkeypatch, after):
    begin(tea, arm("sft"), arm("dpo", broken=(2,)), folder=tmp_path / "whole", placebo=True)
    applied.clear()
    asked = (arm("sft"), arm("dpo", broken=(2,)))
    with cut_off(monkeypatch, after), pytest.raises(KeyboardInterrupt):
        begin(tea, *asked, folder=tmp_path / "cut", placebo=True)
    begin(tea, *asked, folder=tmp_path / "cut", placebo=True)
    assert len(applied) <= 13, "the one that was cut off may have been begun twice, and no other"
    for file in sorted(path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*.json")):
        texts = [(tmp_path / place / file).read_text(encoding="utf-8") for place in ("whole", "cut")]
        assert without_memory(texts[0]) == without_memory(texts[1]), file


def without_memory(text: str) -> list[str]:
    return [line for line in text.splitlines() if "peak_mb" not in line]


def test_another_number_of_seeds_is_another_design(tea, tmp_path):
    begin(tea, arm(), folder=tmp_path)
    with pytest.raises(RunError, match="another design: seeds"):
        begin(tea, arm(), folder=tmp_path, seeds=2)


def test_a_number_of_seeds_that_is_none_is_refused(tea, run):
    for number, hint in (("0", "seeds"), ("101", "seeds")):
        code, _, err = run("study", str(tea), "--seeds", number)
        assert (code, hint in err) == (2, True), err


@pytest.mark.slow
def test_the_command_trains_real_seeds_apart(tea, tmp_path, tiny_folder, run):
    asked = ["study", str(tea), "--model", str(tiny_folder), "--dtype", "fp32", "--guard", "off", "--benign-steps", "0"]
    arms = ["--interventions", "sft", "-o", "sft.max_steps=2", "-o", "sft.learning_rate=1e-2", "--no-placebo"]
    code, out, err = run(*asked, *arms, "--seeds", "2", "--format", "json", "--run", "run")
    assert code == 0, err
    (trained,) = json.loads(out)["arms"]
    rows = trained["judgement"]["seeds"]
    assert [row["seed"] for row in rows] == [0, 1]
    assert rows[0]["shift_nats"] != rows[1]["shift_nats"]
    outcomes = [json.loads((tmp_path / "run" / row["folder"] / "outcome.json").read_text("utf-8")) for row in rows]
    assert [one["settings"]["seed"] for one in outcomes] == [0, 1]
    assert "2 seeds, nats per token" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
