"""The tables of losses and of the guard's sensors are open: an entry is one file and one line, and works everywhere."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from tiny import context, pairs, tiny_model

from conviction.core.options import Option, build, flat, list_fields, parse_options
from conviction.errors import InputError
from conviction.forecasting.pipeline import forecast
from conviction.forecasting.sweep import parse_sweep
from conviction.interventions.charts import training_chart
from conviction.interventions.dpo import Dpo
from conviction.training.guard import Guard
from conviction.training.losses import LOSSES, find_loss, loss_parameters
from conviction.training.losses.loss import Loss
from conviction.training.sensors import SENSORS, Sensor, sensor_limits
from conviction.views.live import step_line

LOSS_FILE = '''
"""A square around a target margin."""

from conviction.core.options import Option
from conviction.training.losses.loss import Loss

TARGET = Option(name="target", meaning="margin that is aimed at", above=0)


def squared(pairs, *, beta=0.1, target=2.0):
    return (beta * pairs.delta - target) ** 2


LOSS = Loss(squared, compares="delta", options=(TARGET,), paper="Nobody, arXiv 0000.00000", trl="square")
'''
SENSOR_FILE = '''
"""How hard a step pushes."""

from conviction.core.options import Option
from conviction.training.sensors.sensor import Sensor, Threshold

LIMIT = Option(name="max_push", default=1e9, meaning="gradient norm of a step", above=0)
JUDGE = Threshold(limit=LIMIT, message="a step pushes with {value:.1e} (limit {limit:g})")
SENSOR = Sensor(
    name="push", judge=JUDGE, stops=True, read_step=lambda step: step.grad_norm,
    show=lambda push: f"push {push:.3g}", curve="gradient norm",
)
'''
QUICK = {"learning_rate": 1e-2, "max_steps": 4, "epochs": 4, "batch_size": 2}


@pytest.fixture(autouse=True)
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file each, and the line in the table."""
    for name, text in (("added_squared", LOSS_FILE), ("added_push", SENSOR_FILE)):
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(LOSSES, "squared", import_module("added_squared").LOSS)
    monkeypatch.setitem(SENSORS, "push", import_module("added_push").SENSOR)


def steps(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text(encoding="utf-8").split("\n") if line]


def test_parameters_and_limits_are_options():
    fields = {field.name: field for kind in (Dpo, Guard) for field in list_fields(kind)}
    assert fields["target"].meaning == "margin that is aimed at (squared)"
    assert fields["max_push"].default == 1e9
    options = ["loss=squared", "target=1.5", "max_push=3"]
    values, limits = parse_options([Dpo, Guard], options)
    assert build(Dpo(), values) == Dpo(loss="squared", target=1.5)
    assert build(Guard(), limits) == Guard(max_push=3.0)
    assert {"target": 1.5, "loss": "squared"}.items() <= flat(Dpo(loss="squared", target=1.5)).items()
    assert parse_sweep(Dpo(loss="squared"), ["target=1,2"]) == [{"target": 1.0}, {"target": 2.0}]


@pytest.mark.parametrize(
    ("given", "message", "hint"),
    [
        ({"loss": "sqared"}, "loss is 'sqared'", "did you mean 'squared'?"),
        ({"target": 1.0}, "loss 'dpo' has no target", "its parameters: beta, label_smoothing"),
        ({"loss": "squared", "target": 0.0}, "target is 0.0", "above 0"),
        ({"loss": "squared", "tarket": 1.0}, "dpo has no field 'tarket'", "did you mean 'target'?"),
    ],
)
def test_what_is_wrong_is_named(given, message, hint):
    with pytest.raises(InputError) as caught:
        Dpo(**given)
    assert caught.value.message == message
    assert hint in caught.value.hint


def test_a_run_trains_by_the_loss_and_is_stopped_by_the_sensor(tmp_path):
    free, strict = tmp_path / "free", tmp_path / "strict"
    arm, data = Dpo(loss="squared", target=1.5, **QUICK), pairs(4)
    outcome = arm.apply(tiny_model(), data, context(guard=Guard(mode="off", sample_tokens=8), folder=free))
    lines = steps(free)
    assert outcome.guard_stop is None
    assert outcome.settings["target"] == 1.5
    assert lines[0]["loss"] == pytest.approx(1.5**2, abs=1e-4), "nothing has moved before the first step"
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert [line["guard"]["push"] for line in lines] == [line["grad_norm"] for line in lines]
    stopped = arm.apply(tiny_model(), data, context(guard=Guard(max_push=1e-9, sample_tokens=8), folder=strict))
    assert stopped.guard_stop.step == 1
    assert f"push {lines[0]['grad_norm']:.3g}" in step_line(lines[0])
    assert '"title": "gradient norm"' in json.dumps(training_chart(lines).to_dict())
    assert "a step pushes with" in stopped.guard_stop.text
    assert steps(strict)[-1]["guard"]["violations"][-1] == stopped.guard_stop.reasons[-1]
    assert "margin" in stopped.guard_stop.flip_margin or "No pair" in stopped.guard_stop.flip_margin


def test_a_forecast_says_what_it_knows_of_the_loss():
    arm = Dpo(loss="squared", **QUICK)
    seen = forecast(arm, tiny_model(), pairs(4), pilot_steps=2, examples=4, sweep=[{"target": 1.0}])
    assert seen.cost.loss == "squared"
    assert seen.options["target"] == 2.0
    assert seen.settings[0].options == {"target": 1.0}


def test_a_config_of_trl_may_name_it(tmp_path):
    """In a process of its own, in which the table has the line from the start."""
    (tmp_path / "config.yaml").write_text("loss_type: square\nbeta: 0.2\n", encoding="utf-8")
    code = (
        "import added_squared; from pathlib import Path; from conviction.training.losses import LOSSES\n"
        "LOSSES['squared'] = added_squared.LOSS\n"
        "from conviction.config.foreign import read_config\n"
        "print(read_config(Path('config.yaml')).options['loss'])"
    )
    paths = [str(tmp_path), *filter(None, sys.path)]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}\n{code}"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "squared", done.stderr


def odd(pairs, *, beta=0.1, tilt=1.0):
    return pairs.delta * beta * tilt


TRAITS: dict[str, Any] = {"compares": "delta", "paper": "Nobody, arXiv 0"}
TILT = Option(name="tilt", meaning="of no use")


def test_an_entry_that_lacks_a_trait_is_named_when_it_is_made():
    assert Loss(odd, **TRAITS, options=(TILT,)).parameters == {"beta": 0.1, "tilt": 1.0}
    for lacking in TRAITS:
        with pytest.raises(TypeError, match=lacking):
            Loss(odd, **{name: value for name, value in TRAITS.items() if name != lacking}, options=(TILT,))
    with pytest.raises(InputError, match="loss 'odd': its function and its options do not agree on tilt"):
        Loss(odd, **TRAITS)
    with pytest.raises(InputError, match="do not agree on beta"):
        Loss(lambda pairs: pairs.delta, **TRAITS)
    with pytest.raises(InputError, match="sensor 'two' reads in two ways"):
        Sensor(name="two", judge=lambda _: None, stops=True, read_step=lambda _: 0.0, read_samples=lambda _: 0.0)


def test_two_entries_cannot_mean_different_things_by_one_name(monkeypatch):
    def other(pairs, *, beta=0.1, target=1.0):
        return pairs.delta * beta * target

    target = Option(name="target", meaning="something else", above=0)
    monkeypatch.setitem(LOSSES, "other", Loss(other, **TRAITS, options=(target,)))
    with pytest.raises(InputError, match="'squared' and 'other' mean different things by target"):
        loss_parameters()
    again = Sensor(name="again", judge=lambda _: None, stops=True, limits=SENSORS["push"].options)
    monkeypatch.setitem(SENSORS, "again", again)
    with pytest.raises(InputError, match="'again': another sensor has a limit max_push"):
        sensor_limits()


def test_the_recipes_for_contributors_are_entries():
    page = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for section, name, kind in (("A loss", "LOSS", Loss), ("A sensor of the guard", "SENSOR", Sensor)):
        (block,) = re.findall(r"```python\n(.*?)```", page.split(f"### {section}\n")[1].split("\n##")[0], re.DOTALL)
        names: dict[str, Any] = {}
        exec(compile(block, section, "exec"), names)  # noqa: S102  our own page
        assert isinstance(names[name], kind)


def test_every_entry_has_the_name_of_its_line_and_of_its_file():
    for table in (LOSSES, SENSORS):
        assert all(entry.name == name for name, entry in table.items())
    root = Path(import_module("conviction.training").__file__).parent
    for room, table, shared in (("losses", LOSSES, {"loss", "pairs"}), ("sensors", SENSORS, {"sensor"})):
        files = {path.stem for path in (root / room).glob("[!_]*.py")} - shared
        assert files == table.keys() - {"squared", "push"}
    assert find_loss("squared") is LOSSES["squared"]


def test_no_other_file_of_the_source_names_a_loss():
    """``dpo`` is also the name of the intervention."""
    root = Path(import_module("conviction").__file__).parent
    names = {f'"{name}"' for name in LOSSES} - {'"dpo"', '"squared"'}
    for path in root.rglob("*.py"):
        if path.parent.name != "losses":
            named = {name for name in names if name in path.read_text(encoding="utf-8")}
            assert not named, f"{path} names {named}"


def test_no_other_file_of_the_source_reads_a_sensor_by_its_name():
    root = Path(import_module("conviction").__file__).parent
    files = [path for path in root.rglob("*.py") if path.parent.name != "sensors"]
    named = {
        name for name in SENSORS for path in files if re.search(rf"""\[['"]{name}['"]\]""", path.read_text("utf-8"))
    }
    assert named <= {"margin", "chosen_drop"}, "which are also measures of a step"


def test_options_are_listed_without_torch():
    code = (
        "import sys; from conviction.core.options import list_fields\n"
        "from conviction.interventions.dpo import Dpo; from conviction.training.guard import Guard\n"
        "assert list(list_fields(Dpo)) and list(list_fields(Guard)); print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}\n{code}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "False", done.stderr
