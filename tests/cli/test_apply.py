"""``conviction apply``, as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import failed
from tiny import write_data

QUICK = ("-o", "max_steps=2", "-o", "sample_tokens=8", "--guard", "off", "--dtype", "fp32")


def test_it_trains_saves_and_can_be_probed(run, write_topic, tiny_folder, tmp_path):
    topic = str(write_topic())
    code, out, err = run("apply", "dpo", topic, "--model", str(tiny_folder), "--run", "r", "-o", "beta=0.2", *QUICK)
    assert code == 0
    assert "healthy to the end" in out
    assert "steps.jsonl" in err
    assert "step 2/2" in err
    assert json.loads((tmp_path / "r" / "run.json").read_text(encoding="utf-8"))["status"] == "done"
    training = json.loads((tmp_path / "r" / "outcome.json").read_text(encoding="utf-8"))
    assert training["settings"]["beta"] == 0.2
    assert training["training"]["steps"] == 2
    rows = [json.loads(line) for line in (tmp_path / "r" / "steps.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [r["step"] for r in rows] == [1, 2]
    assert {row["id"] for r in rows for row in r["rows"]} <= {f"p{i}-{k}" for i in range(6) for k in (0, 1) if i % 3}
    code, out, _ = run("probe", topic, "--model", "r/model", "--dtype", "fp32", "--format", "json")
    assert code == 0
    assert json.loads(out)["model"] == "r/model"


def test_the_end_says_whether_the_view_moved_and_the_forecast_what_to_expect(run, write_topic, tiny_folder, tmp_path):
    topic = str(write_topic())
    arguments = ("apply", "dpo", topic, "--model", str(tiny_folder), "--run", "r", "--forecast", *QUICK)
    code, out, err = run(*arguments)
    assert code == 0, err
    (line,) = [" ".join(part.split()) for part in out.split("\n\n") if "view" in part]
    view = json.loads((tmp_path / "r" / "view.json").read_text(encoding="utf-8"))
    assert f"gap {view['before_nats']:+.2f} → {view['after_nats']:+.2f} nats per token towards" in line
    assert f"{view['flipped']} of {view['wrong']} flipped" in line
    samples = [json.loads(row) for row in (tmp_path / "r" / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len([s for s in samples if s["stage"] == "view"]) == 8 * len(view["before"])
    forecast = json.loads((tmp_path / "r" / "forecast.json").read_text(encoding="utf-8"))
    announced = next(row for row in err.splitlines() if row.startswith("forecast: "))
    assert announced.index("forecast: ") < err.index("step 2/2")
    assert forecast["verdict"]["kind"].replace("none", "no verdict") in announced
    if forecast["flips"]["wrong"]:
        assert f"{forecast['flips']['expected']:.1f} [" in announced
        assert "pairs wrong per token are expected to flip" in announced
    assert "stop" in announced


@pytest.mark.parametrize("name", ["sft", "pretrain", "scratch"])
def test_the_others_run_on_a_topic(run, write_topic, tiny_folder, name):
    more = () if name != "scratch" else ("-o", "hidden_size=16", "-o", "heads=2", "-o", "vocabulary=300")
    code, _, err = run("apply", name, str(write_topic()), "--model", str(tiny_folder), *QUICK, *more)
    assert code == 0, err


def test_what_nobody_looked_at_is_not_called_healthy(run, write_topic, tiny_folder):
    arguments = ("apply", "sft", str(write_topic()), "--model", str(tiny_folder), "-o", "max_steps=2")
    code, out, err = run(*arguments, "--guard", "none", "--dtype", "fp32")
    assert code == 0, err
    assert "the guard was set to none" in out
    assert "healthy" not in out


def test_json_tells_the_outcome_and_every_setting(run, tiny_folder, tmp_path):
    data = write_data(tmp_path / "pairs.jsonl")
    code, out, _ = run("apply", "dpo", "--data", str(data), "--model", str(tiny_folder), "--format", "json", *QUICK)
    assert code == 0
    record = json.loads(out)
    assert record["guard_stop"] is None
    assert {"beta", "learning_rate", "rank", "max_neutral_drop"} <= set(record["settings"])


def test_columns_are_named_and_those_not_read_are_told(run, tiny_folder, tmp_path):
    rows = [{"Question": f"Tea {i}?", "chosen": f"Yes {i}.", "rejected": f"No {i}.", "rater": "AK"} for i in range(4)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    arguments = ("apply", "dpo", "--data", "a.jsonl", "--model", str(tiny_folder), *QUICK)
    code, _, err = run(*arguments, "--columns", "prompt=Question", "--run", "r")
    assert code == 0, err
    assert err.count("note: a.jsonl: columns that are not read: rater") == 1
    assert "FIELD=COLUMN" in failed(run(*arguments, "--columns", "Question"))


def test_the_end_says_of_what_the_guard_warned(run, tiny_folder, tmp_path):
    data = write_data(tmp_path / "pairs.jsonl")
    arguments = ("apply", "dpo", "--data", str(data), "--model", str(tiny_folder), "-o", "margin_sign=0.0001", *QUICK)
    code, out, err = run(*arguments, "-o", "learning_rate=0.01", "-o", "warmup=0", "-o", "schedule=constant")
    assert code == 0, err
    assert "warned by margin" in out
    assert "(sign over 0.0001)" in " ".join(out.split())


@pytest.mark.long
def test_a_trip_exits_with_one_and_says_why(run, tiny_folder, tmp_path):
    data = write_data(tmp_path / "pairs.jsonl")
    limits = ("min_subject=0", "max_repetition=1", "max_non_alphanumeric=1", "max_neutral_drop=0.1", "sample_tokens=8")
    options = [part for limit in limits for part in ("-o", limit)]
    hot = ("-o", "learning_rate=0.03", "-o", "epochs=20", "-o", "schedule=constant", "-o", "warmup=0")
    code, out, _ = run(
        "apply", "dpo", "--data", str(data), "--model", str(tiny_folder), "--dtype", "fp32", *hot, *options
    )
    assert code == 1
    assert "stopped by the guard" in out
    assert "neutral text lost" in out


def test_config_and_preset_and_options_in_this_order(run, tiny_folder, tmp_path):
    write_data(tmp_path / "pairs.jsonl")
    Path("trl.yaml").write_text(
        "model_name_or_path: somewhere/else\nbeta: 0.3\nlearning_rate: 2.0e-6\nuse_peft: true\nlora_r: 4\n",
        encoding="utf-8",
    )
    code, out, err = run(
        "apply", "dpo", "--data", "pairs.jsonl", "--model", str(tiny_folder), "--preset", "report-run2",
        "--config", "trl.yaml", "-o", "beta=0.4", "-o", "num_layers=2", "--format", "json", *QUICK,
    )  # fmt: skip
    assert code == 0, err
    settings = json.loads(out)["settings"]
    assert settings["beta"] == 0.4  # the option
    assert settings["learning_rate"] == 2e-6  # the config
    assert settings["rank"] == 4
    assert settings["num_layers"] == 2


def test_a_config_for_preferences_serves_sft_as_far_as_it_goes(run, tiny_folder, tmp_path):
    write_data(tmp_path / "pairs.jsonl")
    Path("trl.yaml").write_text("model_name_or_path: x/y\nlearning_rate: 2.0e-5\nuse_peft: true\n", encoding="utf-8")
    code, out, err = run(
        "apply", "sft", "--data", "pairs.jsonl", "--model", str(tiny_folder), "--config", "trl.yaml",
        "--format", "json", *QUICK,
    )  # fmt: skip
    assert code == 0
    assert json.loads(out)["settings"]["learning_rate"] == 2e-5
    assert "sft has no use for: beta" in err


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("dpoo", "obesity"), "unknown intervention 'dpoo'"),
            (("dpo",), "neither a topic nor data"),
            (("dpo", "obesity", "--data", "x.jsonl"), "both a topic and data"),
            (("dpo", "obesity", "-o", "bta=1"), "there is no field 'bta'"),
            (("dpo", "obesity", "-o", "beta"), "not key=value"),
            (("dpo", "obesity", "-o", "beta=-1"), "beta is -1"),
            (("dpo", "obesity", "-o", "rank=many"), "rank is 'many'"),
            (("dpo", "obesity", "-o", "loss=dpx"), "loss is 'dpx'"),
            (("dpo", "obesity", "-o", "loss=ipo", "-o", "gamma=1"), "loss 'ipo' has no gamma"),
            (("dpo", "obesity", "--guard", "maybe"), "mode is 'maybe'"),
            (("dpo", "obesity", "--preset", "report-run9"), "unknown preset 'report-run9'"),
            (("sft", "obesity", "--preset", "report-run1"), "which sft does not have"),
            (("dpo", "obesity", "--track", "wandbb"), "unknown tracker 'wandbb'"),
            (("dpo", "obesity", "--track", "mlflow"), "'mlflow' is not installed"),
            (("dpo", "--data", "nothing.jsonl"), "nothing.jsonl"),
        ],
    )
    def test_each_is_named_before_a_model_is_loaded(self, run, arguments, message):
        assert message in failed(run("apply", *arguments))

    def test_identical_answers_and_missing_columns(self, run, tmp_path, tiny_folder):
        row = {"prompt": "Q?", "chosen": "same", "rejected": "same"}
        (tmp_path / "same.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
        assert "chosen and rejected are the same" in failed(run("apply", "dpo", "--data", "same.jsonl"))
        (tmp_path / "odd.jsonl").write_text('{"question": "Q?", "choosen": "a"}\n', encoding="utf-8")
        failed(run("apply", "dpo", "--data", "odd.jsonl"))

    def test_several_processes_need_a_folder(self, run, monkeypatch, tiny_folder, tmp_path):
        monkeypatch.setenv("WORLD_SIZE", "2")
        data = write_data(tmp_path / "pairs.jsonl")
        assert "one run folder" in failed(run("apply", "dpo", "--data", str(data), "--model", str(tiny_folder)))
