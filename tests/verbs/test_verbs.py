"""What ``from conviction import …`` gives: every command's work in three lines of Python, with names or objects."""

from __future__ import annotations

import ast
import inspect
import json
import sys
from functools import partial
from pathlib import Path

import altair as alt
import pytest
from tea import tea_items
from tiny import tiny_model

import conviction
from conviction import (
    Dpo,
    Fact,
    Guard,
    Outcome,
    PreferencePair,
    RunContext,
    Study,
    TrainingData,
    apply,
    audit,
    chat,
    compare,
    forecast,
    load_model,
    load_topic,
    localize,
    probe,
    report,
    study,
)
from conviction.core.options import list_fields
from conviction.errors import ConvictionError, InputError, ModelNotFoundError, RunError, TopicError
from conviction.interventions import INTERVENTIONS, TRAITS, find_intervention

FP32 = partial(load_model, dtype="fp32")
SHORT = {"max_steps": 2, "batch_size": 2, "rank": 2, "sample_tokens": 8}
YAML = (
    "name: tea\ntitle: Tea?\npoles:\n  plain: {label: no milk, context: plain.md}\n"
    "  milky: {label: milk, context: milky.md}\ntarget: plain\nitems: [items.jsonl]\n"
)


@pytest.fixture
def tea(write_topic) -> Path:
    return write_topic(yaml=YAML, items=tea_items(12))


@pytest.fixture
def tiny(tiny_folder) -> str:
    return str(tiny_folder)


@pytest.fixture
def facts() -> TrainingData:
    fact = Fact(id="f", prompt_template="{} is a kind of", subject="Bread", target=" metal", target_true=" food")
    return TrainingData("facts", facts=(fact,))


def some_pairs(n: int = 8) -> TrainingData:
    pairs = (PreferencePair(str(i), chat(f"Question {i}?"), f"Answer {i}.", f"Other {i}, no.") for i in range(n))
    return TrainingData("pairs", pairs=tuple(pairs))


class TestEveryVerb:
    def test_probe(self, tea, tiny, tmp_path, capfd):
        card = probe(tiny, tea, quick=True, load=FP32)
        assert card == probe(FP32(tiny), load_topic(tea), quick=True)
        assert list(tmp_path.iterdir()) == [tea], "without a run nothing is written"
        assert "".join(capfd.readouterr()) == "", "quiet, if nobody asks"

    def test_audit(self, tea, tiny, tmp_path):
        rows = [{"prompt": f"Question {i}?", "chosen": f"Answer {i}.", "rejected": "Same." * i} for i in range(1, 31)]
        (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
        by_name = audit(str(tmp_path / "pairs.jsonl"), topic=str(tea), model=tiny, select="PD3,PD4", load=FP32)
        assert by_name.topic == "tea"
        assert by_name.read == 30
        assert audit(rows, select=["PD3"]).findings[0].code == "PD301"
        assert audit(tea).topic == "tea"
        assert audit(load_topic(tea)) == audit(tea)
        assert audit(some_pairs()).usable == 8

    def test_audit_writes_a_cleaned_copy(self, tmp_path):
        rows = [{"prompt": f"Question {i}?", "chosen": f"Answer {i}.  ", "rejected": f"Other {i}."} for i in range(30)]
        (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
        logged: list[str] = []
        ctx = RunContext(callbacks=conviction.Callbacks(log=logged.append))
        copy = tmp_path / "clean.jsonl"
        result = audit(tmp_path / "pairs.jsonl", fix=True, output=copy, ctx=ctx)
        assert result.data == str(copy)
        assert logged[0] == f"wrote {copy}"
        assert any("PD108" in line for line in logged)

    def test_forecast(self, tea, tiny, tmp_path):
        expected = forecast("dpo", tiny, tea, pilot_steps=2, guard="off", load=FP32, **SHORT)
        assert expected.intervention == "dpo"
        assert expected.steps == 2
        assert {pair.split for pair in expected.pair_forecasts} == {"train", "test"}
        kept = forecast(
            Dpo(beta=0.2), tiny, some_pairs(), test=tea, pilot_steps=2, guard="off", run=tmp_path / "f", load=FP32,
            sweep={"beta": [0.05, 0.1]}, **SHORT,
        )  # fmt: skip
        assert kept.options["beta"] == 0.2
        assert [point.options for point in kept.settings] == [{"beta": 0.05}, {"beta": 0.1}]
        assert (tmp_path / "f" / "forecast.json").exists()

    def test_apply(self, tea, tiny, tmp_path):
        outcome = apply("dpo", tiny, tea, guard="off", learning_rate=1e-4, beta=0.05, load=FP32, **SHORT)
        assert outcome.settings["learning_rate"] == 1e-4
        assert outcome.settings["sample_tokens"] == 8, "a field of the guard"
        assert outcome.changed.id == "tiny-llama" or "dpo" in outcome.changed.id
        assert [record["step"] for record in outcome.steps] == [1, 2]
        assert list(tmp_path.iterdir()) == [tea]
        strict = apply(Dpo(max_steps=1), FP32(tiny), some_pairs(), guard=Guard(mode="off", min_subject=0.2))
        assert strict.settings["min_subject"] == 0.2

    @pytest.mark.long
    def test_compare_and_report(self, tea, tiny, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        common = {"guard": "off", "load": FP32, **SHORT}
        apply("dpo", tiny, str(tea), run="runs/x", forecast_first=True, **common)
        score = compare("runs/x", load=FP32)
        assert score.pairs == 8
        assert score.real_nats is not None
        assert compare(Path("runs/x"), model=FP32(tiny), load=FP32) == score
        apply("system_prompt", tiny, str(tea), run="runs/y", text="Drink.", load=FP32)
        table = compare("runs/x", "runs/y", topic=tea, benign_steps=0, load=FP32)
        assert [arm.name for arm in table.arms] == ["dpo", "system_prompt"]
        assert table.folder is not None
        assert table.folder.parent == Path("runs")
        assert report("runs/x") == Path("runs/x/report.html")
        assert report(table.folder).exists()
        assert compare("runs/x", "runs/y", topic=tea, benign_steps=0, run=table.folder, load=FP32) == table

    @pytest.mark.long
    def test_study(self, tea, tiny, tmp_path):
        result = study(
            tea, tiny, ["dpo", "system_prompt"], run=tmp_path / "y", benign_steps=0, placebo=False, budget_minutes=60,
            guard="off", options={"dpo": {"learning_rate": 1e-3, **SHORT}, "system_prompt": {"text": "Drink."}},
            load=FP32,
        )  # fmt: skip
        assert [arm.name for arm in result.arms] == ["system_prompt", "dpo"]
        assert result.missing == []
        assert result.arms[1].settings["learning_rate"] == 1e-3
        assert result.folder == tmp_path / "y"
        assert report(result.folder).exists()

    def test_a_study_of_a_model_that_is_there_already(self, tea, tiny, tmp_path):
        model = FP32(tiny)
        result = study(tea, model, [conviction.SystemPrompt(text="Drink.")], run=tmp_path / "y", benign_steps=0)
        assert result.missing == []
        assert json.loads((tmp_path / "y" / "config.json").read_text(encoding="utf-8"))["model"]["dtype"] == "float32"

    def test_localize(self, facts, tiny, tmp_path):
        result = localize(facts, tiny, kinds="block", own_answer=True, samples=2, limit=1, load=FP32)
        assert result.source == "facts"
        kept = localize(
            facts, tiny, kinds=["block"], own_answer=True, samples=2, limit=1, run=tmp_path / "l", load=FP32
        )
        assert kept.maps == result.maps
        assert (tmp_path / "l" / "maps" / "average.svg").exists()


class TestFolders:
    @pytest.mark.long
    def test_what_is_finished_is_read_and_not_done_again(self, tea, tiny, facts, tmp_path, monkeypatch):
        calls = {
            "probe": partial(probe, tiny, tea, quick=True),
            "forecast": partial(forecast, "dpo", tiny, tea, pilot_steps=2, guard="off", **SHORT),
            "apply": partial(apply, "dpo", tiny, tea, guard="off", **SHORT),
            "localize": partial(localize, facts, tiny, kinds="block", own_answer=True, samples=2, limit=1),
            "study": partial(study, tea, tiny, ["system_prompt"], benign_steps=0),
        }
        first = {name: call(run=tmp_path / name, load=FP32) for name, call in calls.items()}
        never = partial(_never, dtype="fp32")
        monkeypatch.setattr(conviction.models, "load_model", _never)
        for name, call in calls.items():
            again = call(run=tmp_path / name, load=never)
            assert again.model_dump() == first[name].model_dump(), name

    def test_an_outcome_that_was_read_back_still_has_its_model(self, tiny, tmp_path):
        call = partial(apply, "dpo", tiny, some_pairs(), guard="off", run=tmp_path / "r", load=FP32, **SHORT)
        one, other = call(), call()
        assert other.model is None
        assert other.changed.id == str(tmp_path / "r" / "model")
        assert other.steps == one.steps
        assert len(one.steps) == 2

    def test_another_call_is_refused_with_what_differs(self, tea, tiny, tmp_path):
        probe(tiny, tea, quick=True, run=tmp_path / "r", load=FP32)
        with pytest.raises(RunError, match="other arguments: quick=True"):
            probe(tiny, tea, run=tmp_path / "r", load=FP32)
        with pytest.raises(RunError, match="other arguments: dtype=fp32"):
            probe(tiny, tea, quick=True, run=tmp_path / "r", load=partial(load_model, dtype="bf16"))
        with pytest.raises(RunError, match="a finished probe of 'tea'"):
            study(tea, tiny, ["system_prompt"], run=tmp_path / "r", load=FP32)

    def test_a_study_with_missing_arms_is_tried_again(self, tea, tiny, tmp_path):
        call = partial(study, tea, tiny, ["rome"], benign_steps=0, run=tmp_path / "r", load=FP32)
        assert call().missing == ["rome"]  # the topic has no facts to write
        assert json.loads((tmp_path / "r" / "run.json").read_text(encoding="utf-8"))["status"] == "failed"
        logged: list[str] = []
        assert call(ctx=RunContext(callbacks=conviction.Callbacks(log=logged.append))).missing == ["rome"]
        assert any("resuming the unfinished run" in line for line in logged)

    def test_nothing_is_left_where_a_name_is_wrong(self, tea, tmp_path):
        with pytest.raises(ModelNotFoundError):
            probe("smollm2-135", tea, run=tmp_path / "r")
        assert not (tmp_path / "r").exists()


def _never(*_arguments, **_more):
    raise AssertionError("a model is loaded")


WRONG = [
    (lambda: probe(5, "obesity"), InputError, "model is 5"),
    (lambda: probe("x", 5), InputError, "topic is 5"),
    (lambda: probe("x", "obesty"), TopicError, "obesty"),
    (lambda: audit(5), InputError, "data is 5"),
    (lambda: audit("obesty"), InputError, "no such topic, file or folder"),
    (lambda: audit("obesity", topic="reading"), TopicError, "'reading' is neither a built-in topic nor"),
    (lambda: audit("obesity", topic=5), InputError, "topic is 5"),
    (lambda: audit("obesity", select=5), InputError, "select is 5"),
    (lambda: audit("obesity", select="PD999"), InputError, "no rule is called 'PD999'"),
    (lambda: forecast("dpoo", "x", "obesity"), InputError, "unknown intervention 'dpoo'"),
    (lambda: forecast("dpo", "x", "obesity", bta=1), InputError, "there is no field 'bta'"),
    (lambda: forecast("dpo", "x", "obesity", sweep={"rank": [1]}), InputError, "cannot be swept"),
    (lambda: apply(5, "x", "obesity"), InputError, "intervention is 5"),
    (lambda: apply(Dpo, "x", "obesity"), InputError, "intervention is <class"),
    (lambda: apply("dpo", "x", "obesity", beta=-1), InputError, "beta is -1"),
    (lambda: apply("dpo", "x", "obesity", beta="0.1"), InputError, "beta is '0.1'"),
    (lambda: apply("dpo", "x", "obesity", guard="maybe"), InputError, "mode is 'maybe'"),
    (lambda: apply("dpo", "x", "obesity", guard=5), InputError, "guard is 5"),
    (lambda: apply("dpo", "x", "obesity", run=5), InputError, "run is 5"),
    (lambda: apply("dpo", "x", "obesity", tracker="wandbb"), InputError, "unknown tracker"),
    (lambda: apply("dpo", "x", "obesity", forecast_first=True), InputError, "kept in a run folder"),
    (lambda: apply("dpo", "x", {"a": 1}), InputError, "data is {'a': 1}"),
    (lambda: study("obesity", "x", "dpo"), InputError, "interventions is 'dpo'"),
    (lambda: study("obesity", "x", []), InputError, "a study needs an arm"),
    (lambda: study("obesity", "x", ["dpo"], options={"sft": {}}), InputError, "no arm of this study"),
    (lambda: study("obesity", "x", ["dpo"], budget_minutes=-1), InputError, "budget_minutes is -1"),
    (compare, InputError, "no run to compare"),
    (lambda: compare(5), InputError, "a run is 5"),
    (lambda: compare("nowhere"), RunError, "holds no forecast"),
    (lambda: report(5), InputError, "run is 5"),
    (lambda: report("nowhere"), RunError, "no readable run.json"),
    (lambda: localize("politeness", "x", kinds="mlpp"), InputError, "unknown kind of site 'mlpp'"),
    (lambda: localize(some_pairs(), "x"), InputError, "pairs holds no facts"),
    (lambda: Dpo(bta=1), InputError, "dpo has no field 'bta'"),
    (lambda: Dpo(learning_rate=-1), InputError, "learning_rate is -1"),
]


class TestErrors:
    @pytest.mark.parametrize(("call", "kind", "message"), WRONG, ids=[message for *_, message in WRONG])
    def test_each_names_what_is_wrong_and_what_to_give(self, call, kind, message):
        with pytest.raises(kind) as caught:
            call()
        assert message in str(caught.value)
        assert isinstance(caught.value, ConvictionError)
        assert caught.value.hint


class TestFlatFields:
    def test_an_object_takes_the_fields_that_the_command_takes(self):
        flat = Dpo(beta=0.05, learning_rate=1e-4, rank=4)
        assert flat.training.learning_rate == 1e-4
        assert flat.weights.rank == 4
        assert flat == Dpo(
            beta=0.05, training=conviction.Training(learning_rate=1e-4), weights=conviction.Weights(rank=4)
        )
        both = Dpo(training=conviction.Training(epochs=2), learning_rate=1e-4)
        assert (both.training.epochs, both.training.learning_rate) == (2, 1e-4)

    @pytest.mark.parametrize("name", INTERVENTIONS)
    def test_no_field_has_the_name_of_a_parameter(self, name):
        fields = {field.name for field in [*list_fields(find_intervention(name)), *list_fields(Guard)]}
        for verb in (apply, forecast):
            assert not fields & set(inspect.signature(verb).parameters)


class TestTables:
    """Every result that is a table: as a frame, as a chart, and in a notebook."""

    def check(self, result, rows: int, columns: set[str], *, chart: bool = True):
        frame = result.to_pandas()
        assert len(frame) == rows
        assert columns <= set(frame.columns)
        drawn = result.plot()
        assert (isinstance(drawn, alt.TopLevelMixin) and bool(drawn.to_dict())) == chart
        html = result._repr_html_()
        assert html.startswith("<p><b>")
        assert "<table>" in html

    def test_a_scorecard(self, tea, tiny):
        card = probe(tiny, tea, load=FP32)
        self.check(card, 24, {"item", "gap_nats", "logp_mean_plain", "logp_mean_milky", "winner"})
        assert list(card.to_pandas()["gap_nats"]) == [row.gap_nats for row in card.rows]

    def test_an_audit(self, tea):
        result = audit(tea)
        self.check(result, len(result.findings), {"code", "level", "rows", "message"})

    def test_a_forecast_and_its_score(self, tea, tiny, tmp_path):
        apply("dpo", tiny, tea, guard="off", run=tmp_path / "r", forecast_first=True, load=FP32, **SHORT)
        expected = conviction.Run(tmp_path / "r").load_forecast(conviction.Forecast)
        self.check(expected, len(expected.pair_forecasts), {"id", "start_nats", "gap_nats", "p_correct"})
        self.check(compare(tmp_path / "r", load=FP32), 5, {"quantity", "expected", "happened"})

    def test_outcomes(self, tiny):
        trained = apply("dpo", tiny, some_pairs(), guard="off", load=FP32, **SHORT)
        self.check(trained, len(trained.settings), {"part", "name", "value"})
        prompted = apply("system_prompt", tiny, some_pairs(), text="<b>Drink.", load=FP32)
        self.check(prompted, len(prompted.settings) + len(prompted.report), {"part", "name", "value"}, chart=False)
        assert "&lt;b&gt;Drink." in prompted._repr_html_()

    @pytest.mark.long
    def test_a_study(self, tea, tiny, tmp_path):
        result = study(tea, tiny, ["system_prompt", "rome"], run=tmp_path / "r", benign_steps=0, load=FP32)
        self.check(result, 2, {"arm", "verdict", "shift", "seconds", "failure"})
        frame = result.to_pandas().set_index("arm")
        assert "facts" in frame.loc["rome", "failure"]
        nothing = Study(model="m", topic="t", target="a", other="b", verdict="v", arms=(), provenance={})
        self.check(nothing, 0, {"arm", "verdict"}, chart=False)

    def test_a_localization(self, facts, tiny):
        result = localize(facts, tiny, kinds="block", own_answer=True, samples=2, limit=1, load=FP32)
        self.check(result, 2 * 7 * 3, {"kind", "control", "role", "layer", "effect"})

    def test_without_pandas_it_is_said(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "pandas", None)
        with pytest.raises(conviction.ConvictionError, match="needs pandas"):
            audit(some_pairs()).to_pandas()


class TestNames:
    STUB = Path(conviction.__file__).with_suffix(".pyi")

    def test_every_name_of_the_stub_is_there_documented_and_sorted(self):
        names = [alias.asname for node in ast.parse(self.STUB.read_text(encoding="utf-8")).body for alias in node.names]
        assert len(names) == len(set(names))
        assert sorted(names) == sorted(conviction.__all__) == conviction.__all__
        for name in names:
            assert getattr(conviction, name).__doc__, name

    def test_every_command_that_gives_a_result_is_a_verb(self):
        for verb in ("probe", "audit", "forecast", "apply", "study", "compare", "report", "localize"):
            assert callable(getattr(conviction, verb))
        assert list(inspect.signature(forecast).parameters)[:3] == ["intervention", "model", "data"]
        assert list(inspect.signature(apply).parameters)[:3] == ["intervention", "model", "data"]


DUMMY = '''
from dataclasses import dataclass
from typing import ClassVar

from conviction.core.options import check_settings, setting
from conviction.interventions.records import Outcome
from conviction.models.prompted import PromptedModel, SystemTurn


@dataclass(frozen=True, kw_only=True)
class Whisper:
    """Says one word before every conversation."""

    name: ClassVar[str] = "whisper"
    changes: ClassVar[str] = "the prompt, by a word"
    needs: ClassVar[str] = "nothing"
    costs: ClassVar[str] = "a word"
    trains: ClassVar[bool] = False
    forecastable: ClassVar[bool] = False
    cost_rank: ClassVar[int] = 5
    placebo: ClassVar[None] = None
    search: ClassVar[dict[str, tuple[str, ...]]] = {}

    word: str = setting("Milk.", "what is said")

    def __post_init__(self):
        check_settings(self)

    def apply(self, model, data, ctx):
        moved = PromptedModel(f"{model.id}+whisper", model, SystemTurn(self.word))
        if ctx.run is not None:
            moved = moved.saved_in(ctx.run.model_path)
        return Outcome.of(self, model, data, settings={}, verdict="said", model=moved)
'''


class TestADummyIntervention:
    """One file and one line: an entry of the table is all that the commands need."""

    @pytest.fixture
    def whisper(self, tmp_path, monkeypatch):
        (tmp_path / "whisper_plugin.py").write_text(DUMMY)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setitem(INTERVENTIONS, "whisper", "whisper_plugin:Whisper")
        yield tmp_path / "whisper_plugin.py"
        sys.modules.pop("whisper_plugin", None)

    @pytest.mark.long
    @pytest.mark.usefixtures("whisper")
    def test_it_is_listed_applied_and_studied(self, run, tea, tiny):
        _, out, _ = run("interventions", "--format", "json")
        assert {
            "name": "whisper",
            "changes": "the prompt, by a word",
            "needs": "nothing",
            "costs": "a word",
        } in json.loads(out)
        assert "what is said" in run("interventions", "whisper")[1]
        on = (str(tea), "--model", tiny, "--dtype", "fp32", "--format", "json")
        code, out, err = run("apply", "whisper", *on, "-o", "word=Tea.", "--run", "a")
        assert code == 0, err
        assert json.loads(out)["settings"]["word"] == "Tea."
        arms = ("--interventions", "whisper,system_prompt", "-o", "whisper.word=Tea.", "--benign-steps", "0")
        code, out, err = run("study", *on, *arms, "--run", "s")
        assert code == 0, err
        assert [arm["name"] for arm in json.loads(out)["arms"]] == ["whisper", "system_prompt"]
        assert isinstance(apply("whisper", tiny, tea, word="Tea.", load=FP32), Outcome)

    @pytest.mark.parametrize("trait", [trait for trait in TRAITS if trait != "apply"])
    def test_a_trait_that_is_missing_is_named_when_the_entry_is_looked_up(self, whisper, trait):
        lines = [line for line in DUMMY.splitlines() if not line.strip().startswith(f"{trait}:")]
        whisper.write_text("\n".join(lines))
        with pytest.raises(InputError, match=rf"'whisper' \(whisper_plugin:Whisper\) lacks {trait}") as caught:
            find_intervention("whisper")
        assert TRAITS[trait] in caught.value.hint

    def test_one_that_trains_has_a_task(self, whisper):
        whisper.write_text(DUMMY.replace("trains: ClassVar[bool] = False", "trains: ClassVar[bool] = True"))
        with pytest.raises(InputError, match="lacks task"):
            find_intervention("whisper")


def test_a_model_object_is_not_loaded_again(tea):
    assert probe(tiny_model(max_position_embeddings=4096), tea, quick=True).model == "tiny-llama"
