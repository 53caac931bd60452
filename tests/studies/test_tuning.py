"""A search for settings: on a part of the train split, with doses along a run; nothing of the test split is read."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tea import YAML, tea_items

from conviction import load_model, load_topic
from conviction.config.plan import plan_intervention
from conviction.core.context import Budget, RunContext
from conviction.core.run import Run
from conviction.data.topic import Topic
from conviction.data.validation import validation_topic
from conviction.errors import InputError
from conviction.interventions.dpo import Dpo
from conviction.interventions.sft import Sft
from conviction.interventions.system_prompt import SystemPrompt
from conviction.reporting.page import report
from conviction.studies import tuning as module
from conviction.studies.context import StudyDesign
from conviction.studies.study import study
from conviction.studies.tuning import DOSES, search_cells, tune, tuned
from conviction.studies.tuning_records import Dose, Trial
from conviction.verbs.changing import apply

CELLS = [{"learning_rate": 5e-5}, {"learning_rate": 1.5e-4}, {"learning_rate": 5e-4}]


@pytest.fixture
def kit(write_topic) -> Topic:
    """24 propositions, 16 of them of the train split."""
    return load_topic(str(write_topic(yaml=YAML, items=tea_items(24))))


@pytest.fixture(scope="module")
def model(tiny_folder):
    return load_model(str(tiny_folder), dtype="fp32")


def ids(topic: Topic, split: str) -> set[str]:
    return {item.id for item in topic.items if item.split == split}


def test_what_settings_are_chosen_on_is_divided_by_proposition_and_holds_no_test_item(kit):
    small = validation_topic(kit)
    assert small is not None
    assert ids(small, "train") | ids(small, "test") == ids(kit, "train")
    asked = {item.proposition for item in small.items if item.split == "test"}
    assert not asked & {item.proposition for item in small.items if item.split == "train"}
    assert len(asked) == 16 // 3
    assert small.digest != kit.digest


@given(st.integers(1, 30))
def test_a_small_train_split_is_not_divided(n):
    kit = load_topic("obesity")
    train = [item for item in kit.items if item.split == "train" and item.role == "target"][:n]
    small = validation_topic(kit.model_copy(update={"items": tuple(train)}))
    assert (small is None) == (len(train) < 8)


def test_given_fields_are_not_searched():
    plan = plan_intervention("dpo", {"beta": 0.1})
    assert {"beta"} <= plan.given
    rates, betas = Dpo.search["learning_rate"], Dpo.search["beta"]
    assert [set(cell) for cell in search_cells(plan)] == [{"learning_rate"}] * len(rates)
    assert len(search_cells(plan_intervention("dpo"))) == len(rates) * len(betas)
    assert search_cells(plan_intervention(Dpo(learning_rate=1e-5, beta=0.2))) == [{}]
    assert plan_intervention(plan).given == plan.given


def readings(*shifts: float, zone: str = "healthy") -> tuple[Dose, ...]:
    warnings = () if zone == "healthy" else ("neutral text lost 0.2",)
    return tuple(
        Dose(step=5 * (n + 1), shift_nats=shift, low=shift - 0.1, high=shift + 0.1, zone=zone, warnings=warnings)
        for n, shift in enumerate(shifts)
    )


@pytest.fixture
def scripted(monkeypatch):
    """Trials that do not train: learning rate → doses, and how many were made."""
    doses: dict[float, tuple[Dose, ...]] = {}
    made: list[float] = []

    def tried(_bench, trial: Trial, _limit) -> Trial:
        rate = trial.options["learning_rate"]
        made.append(rate)
        return trial.model_copy(update={"doses": doses[rate], "steps": 10 * len(doses[rate])})

    monkeypatch.setattr(module, "_tried", tried)
    monkeypatch.setattr(module, "_planned", lambda _bench, cells: [Trial(options=dict(cell)) for cell in cells])
    return SimpleNamespace(doses=doses, made=made)


def search(kit, model, kept=None, minutes=60.0, guard=None, **fields):
    plan = plan_intervention("sft", fields, guard)
    return tune(plan, kit, model, RunContext(), minutes=minutes, kept=kept, cells=None if fields else CELLS)


def test_the_largest_healthy_dose_is_chosen_and_trained_for_as_many_steps(kit, model, scripted):
    scripted.doses |= {
        5e-5: readings(0.1, 0.2),
        1.5e-4: (*readings(0.3, 0.5), *readings(0.9, zone="warning")),
    }
    tuning = search(kit, model)
    assert [trial.chosen for trial in tuning.trials] == [False, True, False]
    chosen = tuning.trials[1].best
    assert chosen is not None
    assert (chosen.step, chosen.shift_nats) == (10, 0.5)
    plan = tuned(plan_intervention("sft"), tuning)
    assert plan.intervention.max_steps == 10
    assert (plan.intervention.learning_rate, plan.intervention.schedule) == (1.5e-4, "constant")
    assert tuning.trials[2].reason.startswith("not tried")
    assert tuning.trials[0].reason.startswith("less: +0.20")


def data(kit):
    from conviction.data.training_data import TrainingData

    return TrainingData.from_topic(kit)


def test_where_no_cell_is_healthy_nothing_is_chosen_and_the_limit_is_named(kit, model, scripted):
    scripted.doses |= {cell["learning_rate"]: readings(0.5, zone="warning") for cell in CELLS}
    tuning = search(kit, model)
    assert tuning.options == {}
    assert "neutral text lost 0.2" in tuning.summary
    assert tuned(plan := plan_intervention("sft"), tuning) is plan


def test_where_the_most_promising_cells_have_no_healthy_dose_the_next_are_tried(kit, model, scripted, monkeypatch):
    def planned(_bench, cells):
        return [Trial(options=dict(cell), forecast_nats=float(-n)) for n, cell in enumerate(cells)]

    monkeypatch.setattr(module, "_planned", planned)
    scripted.doses |= {5e-5: readings(0.5, zone="warning"), 1.5e-4: readings(0.4, zone="warning")}
    scripted.doses |= {5e-4: readings(0.1)}
    assert search(kit, model).options["learning_rate"] == 5e-4
    scripted.made.clear()
    scripted.doses |= {5e-5: readings(0.2)}
    assert search(kit, model).options["learning_rate"] == 5e-5
    assert scripted.made == [5e-5, 1.5e-4]


def test_what_the_guard_stopped_is_followed_by_a_lower_rate_until_one_goes_through(kit, model, monkeypatch):
    """Of all rates but the lowest only the first dose is healthy, and of that all."""
    cells = [{"learning_rate": rate, "beta": beta} for rate in (5e-4, 2.5e-4, 1e-4) for beta in (0.05, 0.1)]
    tried_options = list[dict]()

    def tried(_bench, trial: Trial, _limit) -> Trial:
        tried_options.append(dict(trial.options))
        through = trial.options["learning_rate"] == 1e-4
        update = {"doses": readings(0.1, 0.5), "steps": 20} if through else {"doses": readings(0.1), "guard_stop": "x"}
        return trial.model_copy(update=update)

    monkeypatch.setattr(module, "_tried", tried)
    monkeypatch.setattr(module, "_planned", lambda _bench, cells: [Trial(options=dict(cell)) for cell in cells])
    tuning = tune(plan_intervention("dpo"), kit, model, RunContext(), minutes=60.0, cells=cells)
    assert tried_options == [cells[0], cells[2], cells[4]]
    assert (tuning.options["learning_rate"], tuning.options["max_steps"]) == (1e-4, 10)


def test_a_trial_that_fails_is_a_row_and_others_are_tried(kit, model, monkeypatch):
    monkeypatch.setattr(module, "_planned", lambda _bench, cells: [Trial(options=dict(cell)) for cell in cells])
    monkeypatch.setattr(
        module.Bench,
        "intervention",
        lambda *_: SimpleNamespace(trains=True, apply=lambda *_: (_ for _ in ()).throw(InputError("no room", hint=""))),
    )
    tuning = search(kit, model)
    assert [trial.reason for trial in tuning.trials] == ["failed: no room"] * 3
    assert "no settings with a healthy shift" in tuning.summary


def test_a_shift_away_from_the_target_is_not_chosen(kit, model, scripted):
    scripted.doses |= {cell["learning_rate"]: readings(-0.5) for cell in CELLS}
    assert search(kit, model).options == {}


def test_a_dose_that_is_near_a_limit_of_the_guard_is_not_chosen(kit, model, scripted):
    near = readings(0.5)[0].model_copy(update={"limits_used": {"facts_drop": 0.95, "neutral_drop": 0.1}})
    scripted.doses |= {5e-5: (near,), 1.5e-4: readings(0.1)}
    tuning = search(kit, model)
    assert tuning.options["learning_rate"] == 1.5e-4
    assert tuning.trials[0].reason == "no healthy dose: facts_drop uses 95% of its limit"


@pytest.mark.long
def test_a_trial_that_the_time_ends_keeps_the_doses_that_it_read(kit, model, monkeypatch):
    """The clock jumps after the second reading."""
    clock, real = SimpleNamespace(now=0.0), module.measure_depth
    monkeypatch.setattr("conviction.core.context.time.monotonic", lambda: clock.now)

    def measure(*given, **named):
        clock.now += 100.0
        return real(*given, **named)

    bench = module._bench(plan_intervention("sft", {"rank": 2}, "off"), validation_topic(kit), model, RunContext())
    monkeypatch.setattr(module, "measure_depth", measure)
    trial = module._tried(bench, Trial(options={"learning_rate": 1e-2}), Budget(150.0, started=0.0))
    assert len(trial.doses) == 2
    assert trial.doses[-1].step < trial.steps
    assert trial.failure == "the time for the search was over before its last step"
    assert trial.best in trial.doses
    assert set(trial.doses[0].limits_used) >= {"neutral_drop", "facts_drop", "pluralism"}


def test_every_setting_of_what_does_not_train_is_tried_and_judged_for_damage(kit, model, monkeypatch):
    """Metrics that are not read are not judged: the mean of nothing would be a warning, and here an error."""
    texts = ("Tea is best with milk.", "Tea is best without milk.")
    monkeypatch.setattr(SystemPrompt, "search", {"text": texts})
    tuning = tune(plan_intervention("system_prompt"), kit, model, RunContext(), minutes=60.0)
    assert [(trial.options["text"], len(trial.doses), trial.failure) for trial in tuning.trials] == [
        (text, 1, None) for text in texts
    ]
    shifts = [trial.doses[0].shift_nats for trial in tuning.trials]
    assert shifts[0] != shifts[1]
    read = [trial.doses[0].damage_read for trial in tuning.trials]
    assert read == [shift == max(shifts) for shift in shifts], "what moves less is not read for damage"


@pytest.mark.parametrize(("harmed", "chosen"), [((), "c"), (("c",), "b"), (("c", "b"), "a"), (("a", "b", "c"), None)])
def test_of_what_does_not_train_the_one_that_moves_most_and_breaks_nothing_is_chosen(
    kit, model, monkeypatch, harmed, chosen
):
    made = list[str]()

    def tried(_bench, trial: Trial, _limit) -> Trial:
        text = trial.options["text"]
        made.append(text)
        dose = readings(
            {"a": 0.1, "b": 0.2, "c": 0.3}[text], zone="warning" if trial.made and text in harmed else "healthy"
        )
        return trial.model_copy(update={"doses": (dose[0].model_copy(update={"damage_read": trial.made}),)})

    monkeypatch.setattr(module, "_tried", tried)
    cells = [{"text": text} for text in "abc"]
    tuning = tune(plan_intervention("system_prompt"), kit, model, RunContext(), minutes=60.0, cells=cells)
    assert tuning.options.get("text") == chosen
    assert made == ["a", "b", "c", *"cba"[: min(3, len(harmed) + 1)]]


def test_no_time_is_no_search(kit, model, scripted):
    tuning = search(kit, model, minutes=0.0)
    assert (scripted.made, tuning.options) == ([], {})
    assert "no time" in tuning.summary


def test_a_search_that_was_cut_off_repeats_no_trial(kit, model, scripted, tmp_path, monkeypatch):
    scripted.doses |= {cell["learning_rate"]: readings(0.1) for cell in CELLS}
    kept, real = Run(tmp_path, resumed=True), module._tried

    def cut(bench, trial, limit):
        if len(scripted.made) == 1:
            raise KeyboardInterrupt
        return real(bench, trial, limit)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_tried", cut)
        with pytest.raises(KeyboardInterrupt):
            search(kit, model, kept)
    unfinished = kept.load("tuning", module.Tuning)
    assert (unfinished.complete, unfinished.options, unfinished.summary) == (False, {}, "the search was not finished")
    tuning = search(kit, model, kept)
    assert scripted.made == [5e-5, 1.5e-4]
    assert search(kit, model, kept) == tuning  # read back
    assert len(scripted.made) == 2


def test_a_small_topic_is_not_tuned_and_says_so(model, write_topic):
    tuning = search(load_topic(str(write_topic(yaml=YAML, items=tea_items(9)))), model)
    assert tuning.options == {}
    assert "fewer than 8 propositions" in tuning.summary


@pytest.mark.long
def test_a_real_search_trains_reads_doses_and_never_asks_a_test_item(kit, model, monkeypatch):
    seen: set[str] = set()
    real = module.measure_depth

    def measure(model, topic, **named):
        seen.update(item.id for item in topic.items)
        return real(model, topic, **named)

    monkeypatch.setattr(module, "measure_depth", measure)
    tuning = search(kit, model, guard="off", rank=2)
    tried = [trial for trial in tuning.trials if trial.doses]
    assert [len(trial.doses) for trial in tried] == [DOSES, DOSES]  # the best two by their forecast
    assert all(trial.forecast_nats is not None for trial in tuning.trials)
    expected = [trial.forecast_nats for trial in tuning.trials]
    assert expected == sorted(expected, reverse=True)
    assert seen == ids(kit, "train")
    doses = tried[0].doses
    assert [dose.step for dose in doses] == sorted({dose.step for dose in doses})
    assert doses[-1].step == tried[0].steps
    assert len({dose.shift_nats for dose in doses}) == DOSES, "every reading is of another model"


@pytest.mark.long
def test_a_dose_is_what_a_run_of_so_many_steps_gives(kit, model):
    """Read in the middle of a run, and by itself after a run that ends there."""
    bench = module._bench(
        plan_intervention("sft", {"rank": 2, "warmup": 0.0}, "off"), validation_topic(kit), model, RunContext()
    )
    trial = module._tried(bench, Trial(options={"learning_rate": 1e-2}), Budget(600))
    dose = trial.doses[1]
    short = bench.intervention({"learning_rate": 1e-2, "max_steps": dose.step})
    after = module.measure_depth(
        short.apply(model, bench.data, bench.guarded).changed, bench.topic, base=bench.untouched, kinds=["change"]
    )
    shift = module.differences(bench.untouched, after, "shift").mean()
    assert dose.shift_nats == pytest.approx(shift, abs=1e-5)


@pytest.mark.long
def test_a_study_and_a_run_apply_what_was_chosen(kit, model, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_planned", lambda _bench, cells: [Trial(options=dict(cells[-1]))])
    design = StudyDesign(
        load=lambda name: load_model(name, dtype="fp32"), benign_steps=0, placebo=False, tune_minutes=5.0
    )
    plans = [plan_intervention("sft", {"rank": 2})]
    (arm,) = study(kit, model, plans, Run(tmp_path / "study"), RunContext(), design).arms
    assert arm.failure is None
    tuning = Run(tmp_path / "study/arms/sft").load("tuning", module.Tuning)
    assert tuning.options["learning_rate"] == arm.settings["learning_rate"] == Sft.search["learning_rate"][-1]
    outcome = apply("sft", model, kit, tune_minutes=5.0, rank=2, run=tmp_path / "run")
    assert outcome.settings["max_steps"] == arm.settings["max_steps"] == tuning.options["max_steps"]
    page = report(tmp_path / "run").read_text(encoding="utf-8")
    assert "How its settings were chosen" in page
    assert f"learning_rate={tuning.options['learning_rate']:g}" in page
    assert "Shift at every dose of the runs" in page


def test_settings_cannot_be_searched_without_a_topic(tmp_path, model, kit):
    with pytest.raises(InputError, match="settings are searched on a topic's propositions"):
        apply("sft", model, dataclasses.replace(data(kit), topic=None), tune_minutes=1.0, run=tmp_path / "run")
    with pytest.raises(InputError, match="tune_minutes"):
        apply("sft", model, kit, tune_minutes=-1.0)


def test_a_search_over_two_settings_is_a_map_on_the_page_and_one_over_three_is_not():
    from conviction.reporting.sections import _map
    from conviction.studies.tuning_records import Tuning

    cells = [{"learning_rate": rate, "beta": beta} for rate in (1e-4, 5e-4) for beta in (0.05, 0.1)]
    known: dict = {"intervention": "dpo", "fitted": 2, "asked": 1, "options": {}, "summary": "", "seconds": 0.0}
    trials = [
        Trial(options=cells[0], forecast_nats=0.2),
        Trial(options=cells[1]),
        Trial(options=cells[2], doses=readings(0.4), chosen=True),
        Trial(options=cells[3], doses=readings(0.4, zone="warning")),
    ]
    table = _map("dpo", Tuning(trials=tuple(trials), **known))
    assert table.header == ["beta \\ learning_rate", "0.0001", "0.0005"]
    assert table.body == [["0.05", "+0.20 expected", "+0.40, chosen"], ["0.1", "not tried", "no healthy dose"]]
    more = [trial.model_copy(update={"options": {**trial.options, "rank": 2}}) for trial in trials]
    assert _map("dpo", Tuning(trials=tuple(more), **known)) is None


def test_after_a_run_that_went_through_another_strength_is_tried_before_another_rate(kit, model, monkeypatch):
    """The forecast of a distillation is the same for all rates of a strength."""
    cells = [{"strength": s, "learning_rate": r} for s in (2.0, 1.3) for r in (3e-4, 1.5e-4)]
    made = list[dict]()

    def tried(_bench, trial: Trial, _limit) -> Trial:
        made.append(dict(trial.options))
        stopped = "x" if trial.options["strength"] == 2.0 and len(made) == 1 and stops else None
        return trial.model_copy(update={"doses": readings(0.1), "steps": 10, "guard_stop": stopped})

    monkeypatch.setattr(module, "_tried", tried)
    monkeypatch.setattr(module, "_planned", lambda _bench, cells: [Trial(options=dict(cell)) for cell in cells])
    stops = False
    tune(plan_intervention("distill"), kit, model, RunContext(), minutes=60.0, cells=cells)
    assert made == [cells[0], cells[2]]
    made.clear()
    stops = True
    tune(plan_intervention("distill"), kit, model, RunContext(), minutes=60.0, cells=cells)
    assert made == [cells[0], cells[2]], "what was stopped is followed by a lower strength"


@pytest.mark.parametrize(("healthy_until", "tried"), [(5, [5e-4, 2.5e-4]), (10, [5e-4])])
def test_a_lower_rate_is_not_tried_where_its_whole_run_does_not_go_as_far(
    kit, model, monkeypatch, healthy_until, tried
):
    """20 steps at 2.5e-4 go as far as 10 at 5e-4, of which all 5 or all 10 were healthy before the stop."""
    made = list[float]()

    def run(_bench, trial: Trial, _limit) -> Trial:
        made.append(trial.options["learning_rate"])
        doses = tuple(dose for dose in readings(0.1, 0.2, 0.3, 0.4) if dose.step <= healthy_until)
        return trial.model_copy(update={"doses": doses, "steps": 20, "guard_stop": "x"})

    monkeypatch.setattr(module, "_tried", run)
    monkeypatch.setattr(module, "_planned", lambda _bench, cells: [Trial(options=dict(cell)) for cell in cells])
    cells = [{"learning_rate": rate} for rate in (5e-4, 2.5e-4)]
    tune(plan_intervention("sft"), kit, model, RunContext(), minutes=60.0, cells=cells, confirmed=1)
    assert made == tried
