"""The pages agree with the code: every field, default, loss, preset, tracker, recorded name and rule."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import pytest
from conftest import context

from conviction.auditing.linter import RULES, find_rule
from conviction.config.presets import PRESETS
from conviction.core.options import Field, list_fields, parse_options
from conviction.forecasting.pipeline import MOST_EXAMPLES, PILOT_STEPS
from conviction.forecasting.records import Kind
from conviction.interventions import INTERVENTIONS, find_intervention
from conviction.training.guard import Guard, SampleReading
from conviction.training.losses import LOSSES, parameters
from conviction.training.tracking import TRACKERS

DOCS = Path(__file__).parents[1] / "docs"
TEXT = (DOCS / "training.md").read_text(encoding="utf-8")
MOVES = (DOCS / "interventions.md").read_text(encoding="utf-8")
FORECAST = (DOCS / "forecast.md").read_text(encoding="utf-8")
AUDIT = (DOCS / "audit.md").read_text(encoding="utf-8")
SHARED = ("Weights", "Training")


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
    said: dict[str, tuple[str, str]] = {}
    for section in SHARED:
        said |= options(section) if section in held else {}
    own = options(kind.name) if "| option |" in sections()[kind.name] else {}  # type: ignore[attr-defined]
    return said | own


def check_fields(fields: list[Field], said: dict[str, tuple[str, str]]) -> None:
    assert sorted(said) == sorted(field.name for field in fields)
    for field in fields:
        default, meaning = said[field.name]
        assert is_default(default, field.default), f"{field.name}: {default} on the page, {field.default} in the code"
        assert meaning == field.meaning


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_every_field_of_an_intervention_has_its_default_and_meaning(name):
    kind = find_intervention(name)
    check_fields(list(list_fields(kind)), tables_of(kind))


def test_every_limit_of_the_guard_has_its_default_and_meaning():
    check_fields(list(list_fields(Guard)), options("Guard limits"))


def test_every_intervention_is_introduced():
    trained = {name for name in INTERVENTIONS if hasattr(find_intervention(name), "task")}
    assert {name.strip("`") for name in table("Training: `conviction apply", "intervention")} == trained
    assert {name.strip("`") for name in table("Ways to move a model", "intervention")} == set(INTERVENTIONS)


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
    rows = table("Where a belief sits: `conviction localize", "flag")
    assert {flag for cell in rows for flag in re.findall(r"`(-[\w-]+)`", cell)} == flags_of("localize")


def test_every_flag_of_study_is_explained():
    page = (DOCS / "study.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`-.+?) \|", page, flags=re.MULTILINE)
    assert {flag for cell in rows for flag in re.findall(r"`(-[\w-]+)`", cell)} == flags_of("study")
    said = page.partition("`conviction compare RUN RUN…`")[2].partition("\n\n")[0]
    assert flags_of("compare") == set(re.findall(r"`(-[\w-]+)`", said))


def test_the_study_on_the_page_is_what_was_measured():
    from conviction.reporting.words import HEADER, cells
    from conviction.studies.records import Arm

    page = (DOCS / "study.md").read_text(encoding="utf-8")
    found = json.loads((DOCS.parent / "benchmarks" / "results" / "study.json").read_text(encoding="utf-8"))
    assert f"| {' | '.join(HEADER)} |" in page
    for arm in found["arms"]:
        name, *rest = cells(Arm.model_validate(arm))
        assert f"| `{name}` | {' | '.join(rest)} |" in page
    assert f"took {found['seconds'] / 60:.0f} minutes" in page


def test_the_study_on_a_gpu_is_what_was_measured():
    from conviction.reporting.words import cells
    from conviction.studies.records import Arm

    page = (DOCS / "study.md").read_text(encoding="utf-8")
    found = json.loads((DOCS.parent / "benchmarks" / "results" / "study_h100.json").read_text(encoding="utf-8"))
    for arm in [*found["arms"], *found["arms_before"]]:
        name, *rest = cells(Arm.model_validate(arm))
        assert f"| `{name}` | {' | '.join(rest)} |" in page
    assert f"after {sum(found['seconds_by_step'].values()):.0f} seconds" in page
    page, gaps = " ".join(page.split()), found["gaps_against_two_cores_fp32"]
    assert f"the kit's {gaps['items']} items differ by {gaps['mean_nats']:.3f} nats" in page
    assert f"by {gaps['max_nats']:.3f} at most" in page


def test_every_flag_of_probe_is_explained():
    rows = re.findall(r"^\| (`-.+?) \|", (DOCS / "probe.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert {flag for cell in rows for flag in re.findall(r"`(-[\w-]+)`", cell)} == flags_of("probe")


def test_every_metric_and_verdict_of_a_study_is_explained():
    from conviction.probing.depth_records import Verdict

    page = (DOCS / "verdict.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| `([a-z]+)` \|", page, flags=re.MULTILINE))
    metrics = {"shift", "propagation", "coherence", "robustness", "durability", "locality", "health", "pluralism"}
    assert set(get_args(Verdict)) | metrics == rows


def test_every_loss_has_its_paper_and_defaults():
    rows = table("Losses", "loss")
    assert {name.strip("`") for name in rows} == set(LOSSES)
    for name, (formula, paper, defaults, when) in rows.items():
        loss = LOSSES[name.strip("`")]
        authors, _, number = loss.paper.partition(", arXiv ")
        assert paper == f"{authors}, [{number}](https://arxiv.org/abs/{number})"
        found = dict(pair.strip("`").split("=") for pair in defaults.split(", "))
        assert {key: float(value) for key, value in found.items()} == parameters(loss.name)
        assert formula
        assert when


def test_every_preset_has_its_options():
    rows = table("Configs and presets", "preset")
    assert {name.strip("`") for name in rows} == set(PRESETS)
    for name, (given, outcome) in rows.items():
        preset = PRESETS[name.strip("`")]
        (found,) = parse_options([find_intervention("dpo")], given.strip("`").split())
        assert found == dict(preset.options)
        assert f"({outcome})" in preset.meaning


def test_every_tracker_is_named():
    assert set(TRACKERS) <= set(re.findall(r"[\w-]+", sections()["Trackers"]))


def test_every_name_in_the_record_is_explained(tmp_path):
    from test_train import OFF, SHORT, pairs, tiny_model

    find_intervention("dpo")(training=SHORT).apply(tiny_model(), pairs(4), ctx=context(guard=OFF, folder=tmp_path))
    steps = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text(encoding="utf-8").splitlines()]
    training = json.loads((tmp_path / "outcome.json").read_text(encoding="utf-8"))

    def said(section: str, first: str) -> set[str]:
        return {name for cell in table(section, first) for name in re.findall(r"`(\w+)`", cell)}

    assert said("steps.jsonl", "field") == {key for step in steps for key in step} | {"logp_mean"}
    assert said("steps.jsonl", "field of `guard`") == {key for step in steps for key in step["guard"]}
    assert said("outcome.json", "field of `outcome`") == set(training["outcome"])
    shown = set(re.findall(r"`(\w+)`", sections()["outcome.json"] + sections()["steps.jsonl"]))
    assert set(training) <= shown
    assert {field.name for field in dataclasses.fields(SampleReading)} <= shown


def commands() -> list[list[str]]:
    """Our command lines on all pages, from the verb on."""
    blocks = [
        b for p in DOCS.glob("*.md") for b in re.findall(r"```console\n(.*?)```", p.read_text("utf-8"), re.DOTALL)
    ]
    lines = [shlex.split(line[2:], comments=True) for b in blocks for line in b.splitlines() if line.startswith("$ ")]
    return [line[1 + line.index("conviction") :] for line in lines if "conviction" in line]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
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


def test_python_on_the_pages_names_what_exists():
    blocks = re.findall(r"```python\n(.*?)```", TEXT + FORECAST + MOVES, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("conviction"):
                for alias in node.names:
                    assert hasattr(import_module(str(node.module)), alias.name)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS:
                KINDS[node.func.id](**{k.arg: ast.literal_eval(k.value) for k in node.keywords if is_plain(k.value)})


KINDS = {name: getattr(import_module("conviction"), name) for name in ("Dpo", "Guard", "Training", "Weights")}


def is_plain(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant)


def test_every_rule_of_the_audit_stands_in_its_table():
    lines = re.findall(r"^\| `(PD\d+)` ([\w-]+) \| (.+) \| (\w+) \| (\w*) ?\| (\w*) ?\|$", AUDIT, flags=re.MULTILINE)
    rules = [find_rule(code) for code in RULES]
    said = [(code, name, level, needs, fix) for code, name, _, level, needs, fix in lines]
    assert said == [
        (r.code, r.name, r.level, " ".join(sorted(r.needs - {"samples"})), "yes" if r.repair else "") for r in rules
    ]


def test_the_calibration_on_the_page_is_what_was_measured():
    results = json.loads((DOCS.parent / "benchmarks/results/audit_calibration.json").read_text(encoding="utf-8"))
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
    assert set(re.findall(r"^\| `([\w ]+)` \| ", FORECAST, flags=re.MULTILINE)) == kinds


def test_the_battery_on_the_page_is_what_was_measured():
    results = json.loads((DOCS.parent / "benchmarks/results/forecast_battery.json").read_text(encoding="utf-8"))
    number = r"[-+]?[\d.]+|–"
    row = rf"^\| ([^|`]+) \| (\d+) \| ({number}) \| ([^|]+) \| ([^|]+) \| (\w+) / (\w+) \| ([\w ]+) \|$"
    said = {name: cells for name, *cells in re.findall(row, FORECAST, flags=re.MULTILINE)}
    assert set(said) == {run["case"] for run in results["runs"]}
    for run in results["runs"]:
        pairs, spearman, moved, flips, expected, real, verdict = said[run["case"]]
        score = run["score"]
        assert (int(pairs), verdict) == (score["pairs"], run["verdict"]["kind"])
        assert (expected, real) == tuple(str(score[key] or "never") for key in ("expected_trip", "guard_stop"))
        if score["real_nats"] is not None:
            assert spearman == f"{score['spearman']:.2f}"
            assert moved == f"{score['expected_nats']:+.2f} / {score['real_nats']:+.2f}"
            assert flips == f"{score['expected_flips']:.1f} / {score['flips']} of {score['wrong']}"


def test_the_edits_on_the_page_are_what_was_measured():
    found = json.loads((DOCS.parent / "benchmarks/results/editing.json").read_text(encoding="utf-8"))
    kinds = ("before", "rome", "rome_original_keys", "rome_identity", "memit", "alphaedit")
    measured = [found[kind] for kind in kinds if kind in found]
    rows = re.findall(r"^\| .+ \|$", MOVES.split("| edits |")[1].split("\n\n")[0], flags=re.MULTILINE)
    assert len(measured) >= 5
    for told, row in zip(measured, rows, strict=True):
        _, *cells = (cell.strip() for cell in row.strip("|").split("|"))
        shares = [f"{told[name]:.0%}".replace("%", " %") for name in ("efficacy", "paraphrase", "neighbourhood")]
        assert cells == [*shares, f"{told['magnitude']:+.2f}", f"{told['fluency']:.2f}" if "fluency" in told else ""]


def test_the_table_of_the_measured_study_fits_a_terminal_of_80_columns(capsys, monkeypatch):
    from rich.console import Console

    from conviction import render, render_study
    from conviction.studies.records import Study

    measured = json.loads((DOCS.parent / "benchmarks" / "results" / "study.json").read_text(encoding="utf-8"))
    found = Study(
        model="m", topic="obesity", target="insulin", other="cico", verdict="", provenance={}, arms=measured["arms"]
    )
    for module in (render, render_study):
        monkeypatch.setattr(module, "out", Console(highlight=False, width=80))
    render_study.show_study(found, "text")
    table = capsys.readouterr().out.split("Before:")[0].splitlines()[1:]
    assert all(len(line) <= 80 for line in table)
    for arm in found.arms:
        (line,) = (line for line in table if line.startswith(arm.name))
        assert line.split()[1] == arm.judgement.verdict, "one line an arm"
