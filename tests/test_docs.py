"""The pages agree with the code and with what was measured, and what they show runs."""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import textwrap
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from tiny import context, tiny_model

from conviction.auditing.linter import RULES, find_rule
from conviction.config.presets import PRESETS
from conviction.core.options import Field, list_fields, parse_options
from conviction.core.protocols import chat
from conviction.data.training_data import PreferencePair, TrainingData
from conviction.forecasting.pipeline import MOST_EXAMPLES, PILOT_STEPS
from conviction.forecasting.records import Kind
from conviction.interventions import INTERVENTIONS, find_intervention
from conviction.models import load_model
from conviction.probing.metrics import METRICS
from conviction.reporting.words import header
from conviction.studies.records import Verdict
from conviction.training.guard import Guard, GuardStop, Zone
from conviction.training.losses import LOSSES, parameters
from conviction.training.sensors import SENSORS
from conviction.training.settings import Training
from conviction.training.tracking import TRACKERS

DOCS = Path(__file__).parents[1] / "docs"
TEXT = (DOCS / "training.md").read_text(encoding="utf-8")
MOVES = (DOCS / "interventions.md").read_text(encoding="utf-8")
FORECAST = (DOCS / "forecast.md").read_text(encoding="utf-8")
AUDIT = (DOCS / "audit.md").read_text(encoding="utf-8")
SHARED = ("Weights", "Training")
RESULTS = DOCS.parent / "benchmarks" / "results"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
RENAMED = {
    "made_in": "applied_in",
    "tokens_more": "extra_tokens",
    "trip": "guard_stop",
    "expected_trip": "predicted_stop_step",
    "trip_error": "stop_error",
    "readings": "measured_by",
}


def page(name: str) -> str:
    """A page of the documentation."""
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


def measured(name: str) -> Any:
    """What a benchmark recorded; those of version 0.1 in the names of this one."""
    return _renamed(json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")))


def measured_arms(name: str, key: str = "arms") -> list[Any]:
    """The arms of a recorded study."""
    from conviction.studies.records import Arm

    ours = {"expected": "forecast", "score": "forecast_score"}
    arms = [{ours.get(k, k): v for k, v in arm.items() if k != "left_out"} for arm in measured(name)[key]]
    return [Arm.model_validate(arm) for arm in arms]


def _renamed(value: Any) -> Any:
    if isinstance(value, list):
        return [_renamed(one) for one in value]
    if isinstance(value, str):
        return "surface" if value == "slogan" else value.replace("collateral:", "locality:")
    if not isinstance(value, dict):
        return value
    applying = value.get("applying")  # was a record within the arm
    flat = {**value, **applying} if isinstance(applying, dict) else value
    return {RENAMED.get(key, key): _renamed(one) for key, one in flat.items() if key != "applying"}


def sections() -> dict[str, str]:
    """Text under each heading, up to the next one of any level."""
    prose = re.sub(r"```.*?```", lambda block: block[0].replace("#", " "), TEXT + MOVES, flags=re.DOTALL)
    parts = re.split(r"^#+ (.+)$", prose, flags=re.MULTILINE)
    return {title.strip("`"): body for title, body in zip(parts[1::2], parts[2::2], strict=True)}


def table(section: str, first: str) -> dict[str, list[str]]:
    """The rows of the table whose header begins with ``first``: first cell → the others."""
    lines = [*sections()[section].split("\n"), ""]
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first} |"))
    rows: dict[str, list[str]] = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        assert name not in rows, f"{section}: {name} stands there twice"
        rows[name] = cells
    return rows


def options(section: str) -> dict[str, tuple[str, str]]:
    """Name → (default as written, meaning)."""
    return {name.strip("`"): (cells[0].strip("`"), cells[1]) for name, cells in table(section, "option").items()}


def is_default(text: str, default: Any) -> bool:
    if isinstance(default, bool):
        return text == str(default).lower()
    if default is None or isinstance(default, str):
        return text == (default or "none")
    return float(text) == default


def tables_of(kind: type) -> dict[str, tuple[str, str]]:
    """What the page says about an intervention: its own table over those that it shares."""
    held = {field.path[0].capitalize() for field in list_fields(kind) if len(field.path) > 1}
    message: dict[str, tuple[str, str]] = {}
    for section in SHARED:
        message |= options(section) if section in held else {}
    own = options(kind.name) if "| option |" in sections()[kind.name] else {}  # type: ignore[attr-defined]
    return message | own


def check_fields(fields: list[Field], message: dict[str, tuple[str, str]]) -> None:
    assert sorted(message) == sorted(field.name for field in fields)
    for field in fields:
        default, meaning = message[field.name]
        assert is_default(default, field.default), f"{field.name}: {default} on the page, {field.default} in the code"
        assert meaning == field.meaning


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_every_field_of_an_intervention_has_its_default_and_meaning(name):
    kind = find_intervention(name)
    check_fields(list(list_fields(kind)), tables_of(kind))


def test_every_limit_of_the_guard_has_its_default_and_meaning():
    check_fields(list(list_fields(Guard)), options("Guard limits"))


def test_every_intervention_is_introduced():
    trained = {name for name in INTERVENTIONS if find_intervention(name).trains}
    assert {name.strip("`") for name in table("Training: `conviction apply", "intervention")} == trained
    assert {name.strip("`") for name in table("Ways to move a model", "intervention")} == set(INTERVENTIONS)
    choices = page("which-method").partition("## What each can do")[2].partition("\n## ")[0]
    named = "".join(re.findall(r"^\| (\[.+?) \|", choices, flags=re.MULTILINE))
    assert set(re.findall(r"`(\w+)`", named)) == set(INTERVENTIONS)


def parameters_of(command: str) -> list[Any]:
    """A command's arguments and options."""
    import typer

    from conviction.cli.app import app

    return list(typer.main.get_command(app).commands[command].params)  # type: ignore[attr-defined]


def flags_of(command: str) -> set[str]:
    """All of a command's flags but --help."""
    flags = {flag for p in parameters_of(command) for flag in (*p.opts, *p.secondary_opts) if p.name != "help"}
    return {flag for flag in flags if flag.startswith("-")}


def test_every_flag_of_localize_is_explained():
    rows = table("Where an answer is computed: `conviction localize", "flag")
    assert {flag for cell in rows for flag in re.findall(r"`(-[\w-]+)`", cell)} == flags_of("localize")


def flags_on(text: str) -> set[str]:
    """The flags in the first cells of a page's tables."""
    rows = re.findall(r"^\| (`-.+?) \|", text, flags=re.MULTILINE)
    return {flag for cell in rows for flag in re.findall(r"`(-[\w-]+)`", cell)}


def test_every_flag_of_study_is_explained():
    assert flags_on(page("study")) == flags_of("study")
    explained = page("study").partition("`conviction compare RUN RUN…`")[2].partition("\n\n")[0]
    assert flags_of("compare") == set(re.findall(r"`(-[\w-]+)`", explained))


def check_arms(arms: list[Any], text: str) -> None:
    """Every arm is a row of a table with the columns of a study."""
    from conviction.reporting.words import cells

    assert f"| {' | '.join(header())} |" in text
    for arm in arms:
        name, *rest = cells(arm)
        assert f"| `{name}` | {' | '.join(rest)} |" in text


def test_the_study_on_the_page_is_what_was_measured():
    result, arms = measured("study"), measured_arms("study")
    check_arms(arms, page("study"))
    assert f"took {result['seconds'] / 60:.0f} minutes" in " ".join(page("study").split())
    moved = {arm.name: arm.judgement.find("shift").value for arm in arms}
    summary = " ".join(page("which-method").split())
    assert f"by {moved['system_prompt']:+.2f} nats per token, retrieval by {moved['rag']:+.2f}" in summary
    assert f"steering by {moved['steer']:+.2f}" in summary
    assert f"moved it by {moved['sft']:+.2f} and {moved['dpo']:+.2f}" in summary


def test_the_search_against_a_grid_on_the_page_is_what_was_measured():
    grids = measured("tuning_grid")["grids"]
    assert {row["arm"] for row in grids} == {"dpo", "sft", "distill", "steer"}
    for row in grids:
        (chosen, (ours, _)), (best, (most, _)) = row["searched"], row["grid"]
        shares = f"{100 * row['share_of_shift']:.0f} %"
        cells = [f"`{row['arm']}`", chosen or "by itself", f"{ours:+.2f}", best or "by itself", f"{most:+.2f}", shares]
        cells += [f"{row[name][0]} of {row[name][1]}" for name in ("trials", "seconds")]
        assert f"| {' | '.join(cells)} |" in page("study")


def test_the_study_on_a_gpu_is_what_was_measured():
    result, text = measured("study_h100"), " ".join(page("study").split())
    check_arms([*measured_arms("study_h100"), *measured_arms("study_h100", "arms_before")], page("study"))
    assert f"after {sum(result['seconds_by_step'].values()):.0f} seconds" in text
    gaps = result["gaps_against_two_cores_fp32"]
    assert f"the kit's {gaps['items']} items differ by {gaps['mean_nats']:.3f} nats" in text
    for where in (text, " ".join(page("hardware").split())):
        assert f"{gaps['mean_nats']:.3f} nats per token on average" in where
        assert f"by {gaps['max_nats']:.3f} at most" in where


def test_every_flag_of_probe_is_explained():
    assert flags_on(page("probe")) == flags_of("probe")


def test_every_flag_of_audit_is_explained():
    assert flags_on(AUDIT) == flags_of("audit")


def test_every_metric_and_verdict_of_a_study_is_explained():
    rows = set(re.findall(r"^\| `([a-z ]+)` \|", page("verdict"), flags=re.MULTILINE))
    assert set(get_args(Verdict)) | set(METRICS) == rows
    titles = set(re.findall(r"`(\w+)`", page("verdict").partition("## What the columns of the table mean")[2]))
    assert set(header()) <= titles


def test_every_verdict_is_translated():
    words = page("glossary").partition("## Verdicts")[2]
    rows = [
        set(re.findall(r"^\| ([a-z' ]+) \|", part, flags=re.MULTILINE)) for part in words.split("\n\n") if "|" in part
    ]
    headed = [{"of a study"}, {"of a forecast"}, {"of the guard"}]
    kinds = [set(get_args(kind)) for kind in (Verdict, Kind, Zone)]
    assert rows == [
        head | (kind - {"none"} if kind == set(get_args(Kind)) else kind)
        for head, kind in zip(headed, kinds, strict=True)
    ]


def test_nats_are_translated_rightly():
    rows = re.findall(r"^\| ([\d.]+) \| ([\d.]+) \|", page("glossary"), flags=re.MULTILINE)
    assert len(rows) >= 6
    for nats, factor in rows:
        assert round(math.exp(float(nats)), 1) == float(factor)
    assert "e^0.4 = 1.5 times" in page("glossary")
    assert f"some {math.exp(10):,.0f}"[:-3] in page("glossary").replace("22,000", "22,026")


def test_every_mode_of_the_guard_is_explained():
    (modes,) = (get_args(get_type_hints(Guard)["mode"]),)
    rows = page("guard").partition("| `--guard` | what it does |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", rows, flags=re.MULTILINE)) == set(modes)


def test_contributing_names_every_room():
    rows = re.findall(r"^\| `(\w+)` \|", (DOCS.parent / "CONTRIBUTING.md").read_text("utf-8"), flags=re.MULTILINE)
    rooms = {path.name for path in (DOCS.parent / "src" / "conviction").iterdir() if path.is_dir()}
    assert set(rows) == rooms - {"__pycache__"}


def test_the_costs_on_the_page_are_what_was_measured():
    text = page("cost")
    commands, training, scoring = measured("commandline")["commands"], measured("training"), measured("scoring")
    for name in ("conviction --help", "conviction probe obesity"):
        assert commands[name]["median"] == pytest.approx(float(cost_of(text, name)), abs=0.5)
    assert (
        cost_of(text, "conviction probe obesity --quick")
        == f"{commands['conviction probe obesity --seed-only']['median']:.0f}"
    )
    for name, row in (("seed", "one answer 3.6×"), ("matched", "matched answers")):
        seconds, peaks = training[name]["seconds_per_pair"], training[name]["peak_mb"]
        (line,) = re.findall(rf"^\| {row}.*", text, flags=re.MULTILINE)
        assert [cell.strip() for cell in line.split("|")[2:-1]] == [
            f"{seconds['ours']:.1f}",
            f"{seconds['trl-best']:.1f}",
            str(peaks["ours"]),
            str(peaks["trl-best"]),
        ]
    for name, row in (("plain", "chat template"), ("shared_context", "the same 400"), ("own_context", "another 400")):
        (line,) = re.findall(rf"^\| {row}.*", text, flags=re.MULTILINE)
        assert [cell.strip("× ") for cell in line.split("|")[2:-1]] == [
            f"{scoring[dtype][name]['ratio_median']:.1f}" for dtype in ("fp32", "bf16")
        ]
    memory, large = measured("memory"), training["llama_3b_shape"]
    assert f"| {memory['fp32']['rss_loaded_mb']} | {memory['bf16']['rss_loaded_mb']} |" in text
    assert f"| {memory['fp32']['peak_over_loaded_mb']} | {memory['bf16']['peak_over_loaded_mb']} |" in text
    assert f"| {large['loaded_mb']} |" in text
    assert f"{large['tokens']} tokens, MB | {large['peak_mb']} |" in text


def cost_of(text: str, command: str) -> str:
    """Seconds of a command in the first table."""
    (seconds,) = re.findall(rf"^\| `{re.escape(command)}`[^|]*\| ([\d.]+) \|", text, flags=re.MULTILINE)
    return str(seconds)


def test_every_loss_has_its_paper_and_defaults():
    rows = table("Losses", "loss")
    assert {name.strip("`") for name in rows} == set(LOSSES)
    for name, (formula, paper, defaults, when) in rows.items():
        loss = LOSSES[name.strip("`")]
        authors, _, number = loss.paper.partition(", arXiv ")
        assert paper == f"{authors}, [{number}](https://arxiv.org/abs/{number})"
        result = dict(pair.strip("`").split("=") for pair in defaults.split(", "))
        assert {key: float(value) for key, value in result.items()} == parameters(loss.name)
        assert formula
        assert when


def test_every_preset_has_its_options():
    rows = table("Configs and presets", "preset")
    assert {name.strip("`") for name in rows} == set(PRESETS)
    for name, (given, outcome) in rows.items():
        preset = PRESETS[name.strip("`")]
        (result,) = parse_options([find_intervention("dpo")], given.strip("`").split())
        assert result == dict(preset.options)
        assert f"({outcome})" in preset.meaning


def test_every_tracker_is_named():
    assert set(TRACKERS) <= set(re.findall(r"[\w-]+", sections()["Trackers"]))


def test_every_name_in_the_record_is_explained(tmp_path):
    conversations = [chat(f"Question {i}?") for i in range(4)]
    pairs = tuple(PreferencePair(f"p{i}", asked, "Yes, it is.", "No!") for i, asked in enumerate(conversations))
    dpo = find_intervention("dpo")(training=Training(epochs=2, learning_rate=1e-3))
    ctx = context(guard=Guard(mode="off", sample_every=1, sample_tokens=8), folder=tmp_path)
    outcome = dpo.apply(tiny_model(), TrainingData("pairs", pairs=pairs), ctx)
    steps = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text(encoding="utf-8").splitlines()]

    def explained(section: str, first: str) -> set[str]:
        return {name for cell in table(section, first) for name in re.findall(r"`(\w+)`", cell)}

    assert explained("steps.jsonl", "field") == {key for step in steps for key in step} | {"logp_mean", "kl_mean"}
    on_a_topic = {"topic"}  # a record of a run that has none, as this, has no such field
    assert explained("steps.jsonl", "field of `guard`") == {key for step in steps for key in step["guard"]} | on_a_topic
    recorded = outcome.model_dump(mode="json")
    assert explained("outcome.json", "field") == set(recorded)
    shown = set(re.findall(r"`(\w+)`", sections()["outcome.json"] + sections()["steps.jsonl"]))
    assert set(recorded["data"]) | set(recorded["training"]) <= shown
    assert {field.name for field in dataclasses.fields(GuardStop)} <= shown
    assert {sensor.name for sensor in SENSORS.values() if sensor.read_samples} <= shown


def commands(*names: str) -> list[list[str]]:
    """Our command lines on some pages or on all, from the verb on."""
    pages = [page(name) for name in names] or [path.read_text("utf-8") for path in sorted(DOCS.glob("*.md"))]
    blocks = [block for text in pages for block in re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL)]
    lines = [shlex.split(line[2:], comments=True) for b in blocks for line in b.splitlines() if line.startswith("$ ")]
    return [line[1 + line.index("conviction") :] for line in lines if "conviction" in line]


@pytest.mark.parametrize("command", {" ".join(command): command for command in commands()}.values(), ids=" ".join)
def test_commands_can_be_parsed(command):
    import typer

    from conviction.cli.app import app

    group, (verb, *rest) = typer.main.get_command(app), command
    given = group.commands[verb].make_context(verb, list(rest)).params  # type: ignore[attr-defined]
    if verb != "apply":
        return
    parse_options([find_intervention(given["name"]), Guard], given["option"] or [])
    assert given["preset"] is None or given["preset"] in PRESETS


def test_every_flag_of_apply_is_explained():
    rows = table("Training: `conviction apply", "flag")
    assert {flag for cell in rows for flag in re.findall(r"`(-[\w-]+)`", cell)} == flags_of("apply")


def test_the_config_on_the_page_is_read(tmp_path):
    from conviction.config.foreign import read_config

    (block,) = re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)
    (tmp_path / "config.yaml").write_text(block, encoding="utf-8")
    read = read_config(tmp_path / "config.yaml")
    assert (read.model, read.data) == ("org/name", "pairs.jsonl")
    assert read.options["rank"] == 16


@pytest.mark.parametrize(
    "name", sorted(path.stem for path in DOCS.glob("*.md") if "```python" in path.read_text("utf-8"))
)
def test_python_on_the_pages_names_what_exists(name):
    for block in python_blocks(name):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("conviction"):
                for alias in node.names:
                    assert hasattr(import_module(str(node.module)), alias.name), alias.name
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS:
                KINDS[node.func.id](**{k.arg: ast.literal_eval(k.value) for k in node.keywords if is_plain(k.value)})


def python_blocks(name: str) -> list[str]:
    """The Python of a page; blocks within lists are indented."""
    return [
        textwrap.dedent(b) for b in re.findall(r"^ *```python\n(.*?)```", page(name), flags=re.DOTALL | re.MULTILINE)
    ]


KINDS = {name: getattr(import_module("conviction"), name) for name in ("Dpo", "Guard", "Training", "Weights")}


def is_plain(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant)


def test_every_rule_of_the_audit_stands_in_its_table():
    lines = re.findall(r"^\| `(PD\d+)` ([\w-]+) \| (.+) \| (\w+) \| (\w*) ?\| (\w*) ?\|$", AUDIT, flags=re.MULTILINE)
    rules = [find_rule(code) for code in RULES]
    message = [(code, name, level, needs, fix) for code, name, _, level, needs, fix in lines]
    assert message == [
        (r.code, r.name, r.level, " ".join(sorted(r.needs - {"samples"})), "yes" if r.repair else "") for r in rules
    ]


def test_the_calibration_on_the_page_is_what_was_measured():
    results = measured("audit_calibration")
    rows = re.findall(r"^\| ([^|`]+) \| (\d+) \| ([\d.]+) \| ([\d.]+) \| (\S+) \| (\S+) \|$", AUDIT, flags=re.MULTILINE)
    assert len(rows) == 8
    for name, pairs, ratio, auc, wrong, over in rows:
        plain = results.get(name) or results[f"{name}, with model"]
        asked = results[f"{name}, with model"]["measures"]
        assert int(pairs) == plain["pairs"]
        assert float(ratio) == pytest.approx(plain["measures"]["PD301"]["mean_ratio"], abs=0.006)
        assert float(auc) == pytest.approx(plain["measures"]["PD303"]["auc"], abs=0.006)
        flips, margins = asked["PD402"], asked["PD403"]
        assert wrong == f"{flips['wrong'] / flips['pairs']:.0%}"
        assert over == f"{margins['over'] / flips['pairs']:.0%}"


def test_every_flag_of_forecast_is_explained():
    rows = re.findall(r"^\| (`--?\w.*?) \| ", FORECAST, flags=re.MULTILINE)
    assert {flag for cell in rows for flag in re.findall(r"`(-[\w-]+)`", cell)} == flags_of("forecast")
    defaults = {p.name: p.default for p in parameters_of("forecast")}
    assert (defaults["examples"], defaults["pilot"]) == (MOST_EXAMPLES, PILOT_STEPS)
    assert f"({MOST_EXAMPLES})" in FORECAST
    assert f"({PILOT_STEPS})" in FORECAST


def test_every_verdict_is_explained():
    kinds = set(get_args(Kind)) - {"none"}
    assert set(re.findall(r"^\| `([\w' ]+)` \| ", FORECAST, flags=re.MULTILINE)) == kinds


def test_the_battery_on_the_page_is_what_was_measured():
    results = measured("forecast_battery")
    number = r"[-+]?[\d.]+|–"
    row = rf"^\| ([^|`]+) \| (\d+) \| ({number}) \| ([^|]+) \| ([^|]+) \| (\w+) / (\w+) \| ([\w ]+) \|$"
    rows = {name: cells for name, *cells in re.findall(row, FORECAST, flags=re.MULTILINE)}
    assert set(rows) == {run["case"] for run in results["runs"]}
    for run in results["runs"]:
        pairs, spearman, moved, flips, expected, real, verdict = rows[run["case"]]
        score = run["score"]
        assert (int(pairs), verdict) == (score["pairs"], run["verdict"]["kind"])
        assert (expected, real) == tuple(str(score[key] or "never") for key in ("predicted_stop_step", "guard_stop"))
        if score["real_nats"] is not None:
            assert spearman == f"{score['spearman']:.2f}"
            assert moved == f"{score['expected_nats']:+.2f} / {score['real_nats']:+.2f}"
            assert flips == f"{score['expected_flips']:.1f} / {score['flips']} of {score['wrong']}"


def test_the_edits_on_the_page_are_what_was_measured():
    results = measured("editing")
    kinds = ("before", "rome", "rome_original_keys", "rome_identity", "memit", "alphaedit")
    scores = [results[kind] for kind in kinds if kind in results]
    rows = re.findall(r"^\| .+ \|$", MOVES.split("| edits |")[1].split("\n\n")[0], flags=re.MULTILINE)
    assert len(scores) >= 5
    for score, row in zip(scores, rows, strict=True):
        _, *cells = (cell.strip() for cell in row.strip("|").split("|"))
        shares = [f"{score[name]:.0%}".replace("%", " %") for name in ("efficacy", "paraphrase", "neighbourhood")]
        assert cells == [*shares, f"{score['magnitude']:+.2f}", f"{score['fluency']:.2f}" if "fluency" in score else ""]


def test_the_table_of_the_measured_study_fits_a_terminal_of_80_columns(capsys, monkeypatch):
    from rich.console import Console

    from conviction.studies.records import Study
    from conviction.views import study as view
    from conviction.views import text

    parts = {"model": "m", "topic": "obesity", "target": "insulin", "other": "cico", "verdict": "", "provenance": {}}
    result = Study(**parts, arms=measured_arms("study"))
    for module in (text, view):
        monkeypatch.setattr(module, "out", Console(highlight=False, width=80))
    view.show_study(result, "text")
    lines = capsys.readouterr().out.split("\n\n")[0].splitlines()[1:]
    assert all(len(line) <= 80 for line in lines)
    for arm in result.arms:
        (line,) = (line for line in lines if line.startswith(arm.name))
        assert line.split()[1] == arm.judgement.verdict, "one line an arm"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built documentation."""
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(build, cwd=DOCS.parent, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return folder


def test_no_page_loads_anything_from_elsewhere(site):
    loaded = r'<(?:script|img|iframe|link)\b[^>]*?\s(?:src|href)="?([^"\s>]+)'
    for path in site.glob("*.html"):
        places = re.findall(loaded, path.read_text(encoding="utf-8"))
        assert places
        assert not [place for place in places if re.match(r"https?:|//", place)], path.name


@pytest.mark.long
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
def test_the_search_finds_pages_without_a_server(site):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page()
        opened.goto(f"{site.as_uri()}/index.html")
        opened.click(".md-search__input")
        opened.wait_for_function("document.querySelector('.md-search-result__meta').innerText.startsWith('Type')")
        opened.keyboard.type("displacement")
        opened.wait_for_selector(".md-search-result__item a[href*='broke']")
        browser.close()


RUN_PAGES = ("quickstart", "will-it-work")
"""Pages whose commands run in one folder, from top to bottom, on a tiny random model; their output is not looked at."""


@pytest.mark.long
@pytest.mark.parametrize("name", RUN_PAGES)
def test_the_commands_of_a_page_run(name, run, tiny_folder):
    for command in commands(name):
        asks_a_model = command[0] in {"probe", "forecast", "apply", "study"} and "--model" not in command
        code, _, err = run(*command, *(["--model", str(tiny_folder)] if asks_a_model else []))
        assert code in {0, 1}, f"{command}\n{err}"


@pytest.mark.long
def test_the_python_page_runs(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in python_blocks("python"):
        exec(compile(block.replace("smollm2-135m", str(tiny_folder)), "python.md", "exec"), names)  # noqa: S102  our own page


@pytest.mark.long
@pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning"
)  # PEFT asks transformers for an old name
def test_the_cookbooks_python_runs(run, tiny_folder, tmp_path):
    """All but the script that trains with TRL, which tests of the guard's callback do."""
    pairs = [{"prompt": f"Question {i}?", "chosen": f"Yes, {i}.", "rejected": f"No, {i}."} for i in range(12)]
    for name in ("pairs.jsonl", "ultra.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    apply = "apply", "dpo", "politeness", "-o", "max_steps=2", "--model", str(tiny_folder), "--run", "runs/quick"
    assert run(*apply)[0] in {0, 1}
    for block in python_blocks("cookbook"):
        if "DPOTrainer" not in block:
            exec(compile(block, "cookbook.md", "exec"), {})  # noqa: S102  our own page
    for name in ("even.jsonl", "clean.jsonl"):
        assert len((tmp_path / name).read_text(encoding="utf-8").splitlines()) == len(pairs)
    assert run("probe", "politeness", "--model", "merged")[0] == 0


@pytest.mark.long
def test_the_tutorial_runs(run, tiny_folder, monkeypatch, capsys):
    """On a tiny model, two steps each: that the commands and the script fit together."""
    blocks = re.findall(r"```console\n(.*?)```", page("tutorial"), flags=re.DOTALL)
    for line in "".join(blocks).splitlines():
        program, *arguments = shlex.split(line.removeprefix("$ "), comments=True)
        if program == "python":
            monkeypatch.setattr(sys, "argv", arguments)
            runpy.run_path(str(DOCS.parent / arguments[0]), run_name="__main__")
            printed = capsys.readouterr().out
            if arguments[1:]:
                assert [row.split(":")[0] for row in printed.splitlines()[1:]] == arguments[1:]
            else:
                assert printed.strip() in page("tutorial")
        elif arguments[0] == "apply":
            assert run(*arguments, "--model", str(tiny_folder), "-o", "max_steps=2")[0] in {0, 1}
        elif arguments[0] == "audit":
            assert run(*arguments)[0] == int(line.partition("# exit ")[2] or 0)


def test_the_tutorial_shows_what_was_measured():
    results = json.loads((DOCS / "length_gap.json").read_text(encoding="utf-8"))
    rows = dict(re.findall(r"^\| (.+?) \| (.+ \| .+) \|$", page("tutorial"), flags=re.MULTILINE))
    cells = {
        "loss at the end": "{loss:.3f}",
        "reward margin at the end": "{margin:.1f}",
        "gap moved on held-out questions, nats per token": "{shift_nats:+.2f}",
        "held-out propositions that came to the target's side, of 15": "{flips}",
    }
    for row, form in cells.items():
        assert rows[row] == " | ".join(form.format(**results[name]) for name in ("matched", "long"))


@pytest.mark.slow
@pytest.mark.usefixtures("shared_scores")
def test_the_reports_collapse_is_stopped(run, tmp_path):
    """The belief kit, a high rate, a low β. The guard stops the run, and what comes back still writes sentences."""
    (apply, probe) = commands("broke")
    assert run(*apply)[0] == 1
    outcome = json.loads((tmp_path / "runs" / "hot" / "outcome.json").read_text(encoding="utf-8"))
    assert outcome["guard_stop"]["step"] < 20
    assert run(*probe)[0] == 0
    healthy = load_model(str(tmp_path / "runs" / "hot" / "model"))
    (answer,) = healthy.generate([chat("What is the difference between a lake and a river?")], max_new_tokens=32)
    assert len(set(answer.text.split())) > 10
